//! Stands before a sidecar, where its peers look for it, and passes on what both sides send. For as long
//! as it is told to, it changes some of what the sidecar sends over its data connections.
//!
//! A peer learns the port for bytes over gRPC, and looks for it at the address where it reached that: so
//! both ports are the sidecar's own ones, at another of this machine's addresses.

use pieces::Pieces;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

mod pieces;

/// Where peers find the sidecar; it is at the usual one itself.
const BEFORE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const BEHIND: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// After accepting went wrong: not a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
const BUFFER: usize = 64 << 10;

#[derive(Debug)]
pub struct Spoiler {
    control_port: u16,
    data_port: u16,
    state: Arc<State>,
    /// It ends all connections when it is dropped.
    _runtime: Runtime,
}

/// What is asked of all connections, and what they did.
#[derive(Debug)]
struct State {
    spoils: AtomicBool,
    changed: AtomicU64,
    seed: u64,
    connections: AtomicU64,
}

impl Spoiler {
    /// Before a sidecar that is about to listen at [`Spoiler::behind`]. Equal seeds change equal bytes of
    /// equal connections.
    pub fn start(seed: u64) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("spoiler")
            .enable_all()
            .build()?;
        let (changed, connections) = (AtomicU64::new(0), AtomicU64::new(0));
        let state = State { spoils: AtomicBool::new(false), changed, seed, connections };
        let state = Arc::new(state);
        let listen = |state| {
            let listener = runtime.block_on(TcpListener::bind((BEFORE, 0)))?;
            let port = listener.local_addr()?.port();
            runtime.spawn(accept(listener, SocketAddrV4::new(BEHIND, port), state));
            io::Result::Ok(port)
        };
        let (control_port, data_port) = (listen(None)?, listen(Some(Arc::clone(&state)))?);
        Ok(Self { control_port, data_port, state, _runtime: runtime })
    }

    /// Where peers reach the sidecar.
    pub fn before(&self) -> SocketAddrV4 {
        SocketAddrV4::new(BEFORE, self.control_port)
    }

    /// Where the sidecar has to listen for its peers, and for those who come for bytes.
    pub fn behind(&self) -> (SocketAddrV4, SocketAddrV4) {
        let at = |port| SocketAddrV4::new(BEHIND, port);
        (at(self.control_port), at(self.data_port))
    }

    /// Whether bytes are changed from now on, also of connections that are open.
    pub fn spoil(&self, spoils: bool) {
        self.state.spoils.store(spoils, Ordering::Relaxed);
    }

    /// How many places were changed, or cut off, so far.
    pub fn changed(&self) -> u64 {
        self.state.changed.load(Ordering::Relaxed)
    }
}

/// Passes connections on until it is dropped; those that have a state may be spoiled.
async fn accept(listener: TcpListener, to: SocketAddrV4, state: Option<Arc<State>>) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Whoever loses a connection finds out, and why is no concern of ours.
        tokio::spawn(pass_on(near, to, state.clone()));
    }
}

/// Until one side ends it, or it is cut.
async fn pass_on(near: TcpStream, to: SocketAddrV4, state: Option<Arc<State>>) -> io::Result<()> {
    let far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (mut near_in, mut near_out) = near.into_split();
    let (mut far_in, mut far_out) = far.into_split();
    let back = async {
        match state {
            Some(state) => state.pass_back(&mut far_in, &mut near_out).await,
            None => tokio::io::copy(&mut far_in, &mut near_out).await.map(drop),
        }
    };
    tokio::select! {
        ended = tokio::io::copy(&mut near_in, &mut far_out) => ended.map(drop),
        ended = back => ended,
    }
}

impl State {
    /// What the sidecar sends.
    async fn pass_back(&self, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> io::Result<()> {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let mut pieces = Pieces::new(self.seed.wrapping_add(connection));
        let mut bytes = vec![0; BUFFER];
        loop {
            let read = from.read(&mut bytes).await?;
            let passed = pieces.pass(&mut bytes[..read], self.spoils.load(Ordering::Relaxed));
            self.changed.fetch_add(passed.changed, Ordering::Relaxed);
            to.write_all(&bytes[..passed.length]).await?;
            if passed.length < read || read == 0 {
                return Ok(());
            }
        }
    }
}
