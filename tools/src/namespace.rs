//! Which namespace a command means.

use crate::admin::Admin;
use crate::hex::{HashPrefix, hex};
use anyhow::{Result, bail};
use refrain_client::v1::{NamespaceInfo, list_entry::Entry, list_request::What};

/// All that a sidecar knows.
pub fn all(sidecar: &mut Admin) -> Result<Vec<NamespaceInfo>> {
    let mut all = Vec::new();
    sidecar.list(What::Namespaces, 0, |entry| {
        if let Entry::Namespace(namespace) = entry {
            all.push(namespace);
        }
        Ok(())
    })?;
    Ok(all)
}

/// The digest of the one that begins so.
pub fn named(sidecar: &mut Admin, prefix: &HashPrefix) -> Result<Vec<u8>> {
    let mut found = all(sidecar)?;
    found.retain(|namespace| prefix.begins(&namespace.digest));
    match found.len() {
        1 => Ok(found.remove(0).digest),
        0 => bail!("no namespace begins with {prefix}: see `refrain ls namespaces`"),
        _ => {
            let names: Vec<_> = found.iter().map(|namespace| hex(&namespace.digest)).collect();
            bail!("{prefix} begins several namespaces: {}", names.join(", "));
        }
    }
}
