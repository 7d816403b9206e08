//! Proves that the crates depend on each other as ARCHITECTURE.md draws them, and on nothing else.

use cargo_metadata::MetadataCommand;
use std::collections::{BTreeMap, BTreeSet};

/// Every arrow between two of our crates that may exist.
const ARROWS: &[(&str, &[&str])] = &[
    ("refrain-store", &[]),
    ("refrain-index", &[]),
    ("refrain-proto", &[]),
    ("refrain-gpu-transfer", &["refrain-store"]),
    ("refrain-client", &["refrain-proto", "refrain-gpu-transfer"]),
    ("refrain-server", &["refrain-store", "refrain-index", "refrain-proto"]),
    // The command line opens stopped stores too, and holds a sidecar against its raw device.
    (
        "refrain",
        &["refrain-client", "refrain-index", "refrain-proto", "refrain-server", "refrain-store"],
    ),
    (
        "refrain-benches",
        // A cluster for the directory is started as the command line starts one.
        &[
            "refrain",
            "refrain-client",
            "refrain-gpu-transfer",
            "refrain-index",
            "refrain-server",
            "refrain-store",
        ],
    ),
    // Simulates a node: what is above the drives, and what is below.
    ("refrain-simulation", &["refrain-index", "refrain-server", "refrain-store"]),
    ("refrain-python", &["refrain-client"]),
    ("refrain-tests", &["refrain", "refrain-client", "refrain-proto"]),
];

/// Libraries that one crate alone may depend on.
const HOMES: &[(&str, &str)] = &[("redis", "refrain-index"), ("rocksdb", "refrain-index")];

#[test]
fn a_heavy_library_has_one_home() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    for (library, home) in HOMES {
        let users = metadata.packages.iter().filter(|package| {
            package.dependencies.iter().any(|dependency| dependency.name == *library)
        });
        let users: Vec<_> = users.map(|package| package.name.as_str()).collect();
        assert_eq!(users, [*home], "{library}");
    }
}

#[test]
fn crates_depend_only_along_the_drawn_arrows() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let allowed: BTreeMap<_, BTreeSet<_>> = ARROWS
        .iter()
        .map(|(from, to)| (*from, to.iter().copied().collect::<BTreeSet<_>>()))
        .collect();
    let members: BTreeSet<_> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(members, allowed.keys().copied().collect(), "a crate has no row in ARROWS");
    for package in &metadata.packages {
        let arrows: BTreeSet<_> = package
            .dependencies
            .iter()
            .map(|d| d.name.as_str())
            .filter(|name| members.contains(name))
            .collect();
        let extra: Vec<_> = arrows.difference(&allowed[package.name.as_str()]).collect();
        assert!(extra.is_empty(), "{} may not depend on {extra:?}", package.name);
    }
}
