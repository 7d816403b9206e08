//! A client of a sidecar on another machine: no shared memory, bytes from and to buffers.

use crate::answers::{Loaded, Saved};
use crate::asked::Asked;
use crate::error::of_address;
use crate::lookup::{NOT_SAVED, check_range, tiers};
use crate::namespace::Namespace;
use crate::numbers;
use crate::session::{Held, Session};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;
use refrain_client::remote::{self, Identity, Transport};
use refrain_client::{ClientError, Done, Layout, Remote, RemoteConfig, v1};
use std::path::PathBuf;
use std::sync::Arc;

/// A connection to a sidecar of another machine, whenever that is there.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct RemoteClient(Held<Remote>);

/// A namespace and shard that lookups are made in.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct RemoteRegistration {
    held: Held<remote::Registration>,
    block_tokens: u32,
}

/// The blocks of a prompt and those of them that are resident, leased.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct RemoteLookup {
    session: Arc<Session>,
    /// None where no sidecar has answered.
    held: Option<Held<remote::Lookup>>,
    prompt_blocks: u32,
    matched_blocks: u32,
    tiers: Vec<v1::TierRun>,
}

#[pymethods]
impl RemoteClient {
    #[new]
    #[pyo3(signature = (
        address, *, ca=None, certificate=None, key=None, plain_text=false, deadline=5.0
    ))]
    fn new(
        py: Python<'_>,
        address: &str,
        ca: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        plain_text: bool,
        deadline: f64,
    ) -> PyResult<Self> {
        let transport = match (ca, certificate, key) {
            (Some(ca), Some(certificate), Some(key)) if !plain_text => {
                Transport::Tls(Identity { ca, certificate, key })
            }
            (None, None, None) if plain_text => Transport::PlainText,
            (None, None, None) => Transport::Loopback,
            _ => {
                let said = "give ca, certificate and key, all three, or none of them; and \
                            plain_text only without";
                return Err(PyValueError::new_err(said));
            }
        };
        let address = address.parse().map_err(|error| of_address(&error))?;
        let config = RemoteConfig { address, transport, deadline: numbers::duration(deadline)? };
        let session = Session::start()?;
        let remote = session.spawn(async { Remote::new(config) })?.answer(py)?;
        Ok(Self(Held::new(&session, remote)?))
    }

    /// Names what this client caches.
    #[pyo3(signature = (namespace, *, shard, block_bytes=None))]
    fn register(
        &self,
        py: Python<'_>,
        namespace: &Namespace,
        shard: u32,
        block_bytes: Option<u64>,
    ) -> PyResult<RemoteRegistration> {
        let (remote, namespace) = (self.0.get()?, namespace.0.clone());
        let taken_for = namespace.layer_bytes.saturating_mul(namespace.layers.into());
        let (block_bytes, block_tokens) =
            (block_bytes.unwrap_or(taken_for), namespace.block_tokens);
        let registering = async move {
            let registration = remote.registration(namespace, shard, block_bytes);
            match registration.layout().await {
                // What may be otherwise later is the concern of later calls.
                Err(error) if !error.retry() => Err(error),
                Ok(_) | Err(_) => Ok(registration),
            }
        };
        let registration = self.0.session().spawn(registering)?.answer(py)?;
        let held = Held::new(self.0.session(), registration)?;
        Ok(RemoteRegistration { held, block_tokens })
    }

    #[getter]
    fn closed(&self) -> bool {
        !self.0.session().is_open()
    }

    fn close(&self, py: Python<'_>) {
        self.0.session().close(py);
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) {
        self.close(py);
    }
}

impl RemoteRegistration {
    fn look_up(
        &self,
        py: Python<'_>,
        prompt: Asked,
        deadline: Option<f64>,
    ) -> PyResult<RemoteLookup> {
        let registration = self.held.get()?;
        let deadline = deadline.map(numbers::duration).transpose()?;
        let blocks = prompt.blocks(self.block_tokens);
        let asking = async move {
            match registration.lookup_within(prompt.prompt(), deadline).await {
                Ok(lookup) => Ok(Some(lookup)),
                Err(ClientError::Absent { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let session = Arc::clone(self.held.session());
        if let Some(lookup) = session.spawn(asking)?.answer(py)? {
            return RemoteLookup::new(session, lookup);
        }
        let (held, tiers) = (None, Vec::new());
        Ok(RemoteLookup { session, held, prompt_blocks: blocks, matched_blocks: 0, tiers })
    }

    fn layout(&self, py: Python<'_>) -> PyResult<Arc<Layout>> {
        let registration = self.held.get()?;
        self.held.session().spawn(async move { registration.layout().await })?.answer(py)
    }
}

#[pymethods]
impl RemoteRegistration {
    /// The longest resident prefix of a prompt, leased.
    #[pyo3(signature = (tokens, *, extra_keys=vec![], deadline=None))]
    fn lookup(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        extra_keys: Vec<Vec<u8>>,
        deadline: Option<f64>,
    ) -> PyResult<RemoteLookup> {
        self.look_up(py, Asked::tokens(tokens, extra_keys)?, deadline)
    }

    /// The same by names that an engine has for its blocks.
    #[pyo3(signature = (hashes, *, separate=false, deadline=None))]
    fn lookup_hashes(
        &self,
        py: Python<'_>,
        hashes: Vec<Vec<u8>>,
        separate: bool,
        deadline: Option<f64>,
    ) -> PyResult<RemoteLookup> {
        self.look_up(py, Asked::hashes(hashes, separate), deadline)
    }

    /// Of a block in a buffer, padding between stripes included.
    #[getter]
    fn payload_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.layout(py)?.payload_bytes)
    }

    /// Where each stripe lies in a payload: offset and length.
    #[getter]
    fn stripes(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64)>> {
        let layout = self.layout(py)?;
        Ok(layout.stripes.iter().map(|stripe| (stripe.offset, stripe.length)).collect())
    }

    fn close(&self, py: Python<'_>) {
        self.held.end(py);
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) {
        self.close(py);
    }
}

impl RemoteLookup {
    fn new(session: Arc<Session>, lookup: remote::Lookup) -> PyResult<Self> {
        let (prompt_blocks, matched_blocks) = (lookup.prompt_blocks, lookup.matched_blocks);
        let tiers = lookup.tiers.clone();
        let held = Some(Held::new(&session, lookup)?);
        Ok(Self { session, held, prompt_blocks, matched_blocks, tiers })
    }

    fn lookup(&self) -> PyResult<Option<Arc<remote::Lookup>>> {
        self.held.as_ref().map(Held::get).transpose()
    }
}

#[pymethods]
impl RemoteLookup {
    /// Full blocks of the prompt, resident or not.
    #[getter]
    fn prompt_blocks(&self) -> u32 {
        self.prompt_blocks
    }

    /// How many of them are resident, from the first one on.
    #[getter]
    fn matched_blocks(&self) -> u32 {
        self.matched_blocks
    }

    /// Whether no sidecar has answered in time.
    #[getter]
    fn absent(&self) -> bool {
        self.held.is_none()
    }

    /// Where the matched blocks lie, in order.
    #[getter]
    fn tiers(&self) -> Vec<(String, u32)> {
        tiers(&self.tiers)
    }

    /// Reads leased blocks into a buffer of bytes, payload behind payload.
    #[pyo3(signature = (into, *, first=0, blocks=None, deadline=None))]
    fn read(
        &self,
        py: Python<'_>,
        into: &Bound<'_, PyAny>,
        first: u32,
        blocks: Option<u32>,
        deadline: Option<f64>,
    ) -> PyResult<Loaded> {
        let (lookup, into) = (self.lookup()?, PyBuffer::<u8>::get(into)?);
        if into.readonly() {
            return Err(PyBufferError::new_err("buffer to read into is read-only"));
        }
        let blocks = blocks.unwrap_or_else(|| self.matched_blocks.saturating_sub(first));
        let (mut bytes, deadline) =
            (vec![0; into.len_bytes()], deadline.map(numbers::duration).transpose()?);
        // The caller may change or give away its buffer while others wait: it is written at the end.
        let reading = async move {
            let Some(lookup) = lookup else {
                check_range(first, blocks, 0)?;
                return Ok((nothing(), Vec::new()));
            };
            let done = lookup.read(first, blocks, &mut bytes, deadline).await?;
            Ok((done, bytes))
        };
        let (done, bytes) = self.session.spawn(reading)?.answer(py)?;
        if !bytes.is_empty() {
            into.copy_from_slice(py, &bytes)?;
        }
        Ok(Loaded(done))
    }

    /// Saves blocks of the prompt out of a buffer of bytes, payload behind payload.
    #[pyo3(signature = (data, *, first=None, durable=false))]
    fn write(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        first: Option<u32>,
        durable: bool,
    ) -> PyResult<Saved> {
        let (lookup, bytes) = (self.lookup()?, PyBuffer::<u8>::get(data)?.to_vec(py)?);
        let first = first.unwrap_or(self.matched_blocks);
        let Some(lookup) = lookup else { return Ok(Saved(NOT_SAVED)) };
        let payload = usize::try_from(lookup.layout().payload_bytes).unwrap_or(usize::MAX);
        if !bytes.len().is_multiple_of(payload) {
            let found = bytes.len();
            let said = format!("{found} bytes are not {payload} for each of some blocks");
            return Err(PyValueError::new_err(said));
        }
        let blocks = u32::try_from(bytes.len() / payload).unwrap_or(u32::MAX);
        let writing = async move {
            let fill = |block: u32, into: &mut [u8]| {
                let place = usize::try_from(block - first).expect("addresses have 64 bits");
                into.copy_from_slice(&bytes[place * payload..][..payload]);
            };
            lookup.write(first, blocks, fill, durable).await
        };
        Ok(Saved(self.session.spawn(writing)?.answer(py)?))
    }

    /// Prolongs the lease; `False`: it was over.
    #[pyo3(signature = (seconds=0.0))]
    fn renew(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        let (lookup, lease) = (self.lookup()?, numbers::duration(seconds)?);
        let Some(lookup) = lookup else { return Ok(false) };
        self.session.spawn(async move { lookup.renew(lease).await })?.answer(py)
    }

    /// Ends the lease; whether it held until now.
    fn release(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(lookup) = self.lookup()? else { return Ok(false) };
        let held = self.session.spawn(async move { lookup.release().await })?.answer(py);
        self.close(py);
        held
    }

    /// Has the lease released, without waiting for the answer.
    fn close(&self, py: Python<'_>) {
        if let Some(held) = &self.held {
            held.end(py);
        }
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) {
        self.close(py);
    }
}

/// Of a load that there is no sidecar for.
fn nothing() -> Done {
    let (host_blocks, ssd_blocks, peer_blocks) = (0, 0, 0);
    let reason = v1::MissReason::Unspecified;
    Done { loaded_blocks: 0, reason, host_blocks, ssd_blocks, peer_blocks }
}
