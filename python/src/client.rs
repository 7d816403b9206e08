//! The session of a worker with its sidecar.

use crate::error::of_address;
use crate::namespace::Namespace;
use crate::numbers;
use crate::registration::Registration;
use crate::session::{Held, Session};
use pyo3::prelude::*;
use refrain_client::{Address, ClientConfig};

/// Where a sidecar listens unless somebody says otherwise, as for the command line.
const ADDRESS: &str = "unix:/run/refrain/refrain.sock";

/// A connection to the sidecar of this node, whenever that is there.
#[pyclass(frozen, module = "refrain_kv")]
#[derive(Debug)]
pub(crate) struct Client(Held<refrain_client::Client>);

/// Where the sidecar is, if nobody says.
pub(crate) fn address(given: Option<String>) -> PyResult<Address> {
    let address = given.or_else(|| std::env::var("REFRAIN_ADDRESS").ok());
    let address = address.as_deref().unwrap_or(ADDRESS);
    address.parse().map_err(|error| of_address(&error))
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (address=None, *, session_arena_bytes=64 << 20, deadline=5.0))]
    fn new(
        py: Python<'_>,
        address: Option<String>,
        session_arena_bytes: u64,
        deadline: f64,
    ) -> PyResult<Self> {
        let address = self::address(address)?;
        let deadline = numbers::duration(deadline)?;
        let config = ClientConfig { address, session_arena_bytes, deadline };
        let session = Session::start()?;
        // Threads of the session's keep it.
        let client =
            session.spawn(async { Ok(refrain_client::Client::new(config)) })?.answer(py)?;
        Ok(Self(Held::new(&session, client)?))
    }

    /// Asks whether the sidecar is there.
    fn connect(&self, py: Python<'_>) -> PyResult<()> {
        let client = self.0.get()?;
        self.0.session().spawn(async move { client.reach().await })?.answer(py)
    }

    /// Whether there is a session with it, as far as is known.
    #[getter]
    fn connected(&self) -> bool {
        self.0.get().is_ok_and(|client| client.is_connected())
    }

    /// Names what this worker caches, to the sidecar that is there or to the one that comes.
    #[pyo3(signature = (namespace, *, shard, block_bytes=None, check=true))]
    fn register(
        &self,
        py: Python<'_>,
        namespace: &Namespace,
        shard: u32,
        block_bytes: Option<u64>,
        check: bool,
    ) -> PyResult<Registration> {
        let (client, namespace) = (self.0.get()?, namespace.0.clone());
        let taken_for = namespace.layer_bytes.saturating_mul(namespace.layers.into());
        let block_bytes = block_bytes.unwrap_or(taken_for);
        let block_tokens = namespace.block_tokens;
        let registering = async move {
            let registration = client.registration(namespace, shard, block_bytes);
            if !check {
                return Ok(registration);
            }
            match registration.layout().await {
                // What may be otherwise later is the concern of later calls.
                Err(error) if !error.retry() => Err(error),
                Ok(_) | Err(_) => Ok(registration),
            }
        };
        let registration = self.0.session().spawn(registering)?.answer(py)?;
        Registration::new(self.0.session(), registration, block_tokens)
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
