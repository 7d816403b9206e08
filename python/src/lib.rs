//! `refrain_kv`: the client for Python.
//!
//! Each class is the client's thing of that name. Calls are made on the threads of a runtime that
//! belongs to a `Client`; Python's thread gives the GIL away while it waits for them, and a signal
//! ends the wait. `close` ends everything that was made with a client; what is called afterwards
//! raises, and a child process of a fork is as if it had closed all.

mod answers;
mod array;
mod asked;
mod cache;
mod client;
mod dlpack;
mod error;
mod fork;
mod load;
mod lookup;
mod named;
mod namespace;
mod numbers;
mod pending;
mod registration;
mod remote;
mod session;
mod task;
mod watch;

#[pyo3::pymodule]
mod _native {
    use pyo3::pyfunction;

    #[pymodule_export]
    use crate::answers::{Loaded, Saved};
    #[pymodule_export]
    use crate::cache::{KvCache, Plane};
    #[pymodule_export]
    use crate::client::Client;
    #[pymodule_export]
    use crate::load::Load;
    #[pymodule_export]
    use crate::lookup::Lookup;
    #[pymodule_export]
    use crate::namespace::{AttentionGroup, Namespace};
    #[pymodule_export]
    use crate::pending::Pending;
    #[pymodule_export]
    use crate::registration::Registration;
    #[pymodule_export]
    use crate::remote::{RemoteClient, RemoteLookup, RemoteRegistration};
    #[pymodule_export]
    use crate::watch::{Change, Watch};

    /// Called in the child of a fork.
    #[pyfunction]
    fn forked() {
        crate::fork::forked();
    }
}
