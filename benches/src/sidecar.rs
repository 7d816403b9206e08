//! A sidecar within this process, as a worker of the same node has it.

use refrain_client::{Client, ClientConfig, Registration, v1};
use refrain_server::config::Config;
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Tokens of a block.
const BLOCK_TOKENS: u32 = 64;

/// Serves until it is stopped.
#[derive(Debug)]
pub struct Sidecar {
    serving: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    address: String,
}

impl Sidecar {
    pub fn start(runtime: &Runtime, directory: &Path, capacity: u64, load_arena: u64) -> Self {
        let mut config = Config::default_for(directory.join("store"), capacity);
        config.load_arena = load_arena;
        config.save_queue = 1 << 30;
        Self::start_with(runtime, config)
    }

    pub fn start_with(runtime: &Runtime, config: Config) -> Self {
        let address = format!("unix:{}", config.listen().expect("one drive").path().display());
        let (stop, stopped) = oneshot::channel();
        let serving = runtime.spawn(async move {
            let stopped = async { drop(stopped.await) };
            refrain_server::serve(config, stopped).await.expect("it serves");
        });
        Self { serving, stop, address }
    }

    pub fn stop(self, runtime: &Runtime) {
        let _ = self.stop.send(());
        runtime.block_on(self.serving).expect("it stops");
    }

    /// A worker's session, as soon as the sidecar listens.
    pub async fn client(&self, session_arena_bytes: u64) -> Client {
        let deadline = Duration::from_mins(1);
        loop {
            let address = self.address.parse().expect("a path that is short enough");
            let config = ClientConfig { address, session_arena_bytes, deadline };
            if let Ok(client) = Client::connect(config).await {
                return client;
            }
            assert!(!self.serving.is_finished(), "the sidecar has ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A worker that caches blocks of `layers` layers.
pub async fn register(client: &Client, layers: u32, layer_bytes: u64) -> Registration {
    let bytes = u64::from(layers) * layer_bytes;
    client.register(namespace(layers, layer_bytes), 0, bytes).await.expect("it is registered")
}

/// Whose blocks have `layers` layers.
pub fn namespace(layers: u32, layer_bytes: u64) -> v1::Namespace {
    let kind = v1::attention_group::Kind::Full.into();
    v1::Namespace {
        tenant: "bench".into(),
        model: "made-up".into(),
        weights: "1".into(),
        config_digest: vec![1],
        kv_dtype: "bf16".into(),
        block_tokens: BLOCK_TOKENS,
        layers,
        layer_bytes,
        layout: v1::KvLayout::Latent.into(),
        groups: vec![v1::AttentionGroup { kind, layers, window_tokens: 0 }],
        tensor_parallel: 1,
        pipeline_parallel: 1,
        context_parallel: 1,
        adapter_digest: Vec::new(),
        salt: Vec::new(),
    }
}

/// The tokens of a prompt of `blocks` that no other `seed` has.
pub fn prompt(seed: u64, blocks: u32) -> Vec<u32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..blocks * BLOCK_TOKENS).map(|_| random.u32(..130_000)).collect()
}
