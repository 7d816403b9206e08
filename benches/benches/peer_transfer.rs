//! How fast do blocks go from one sidecar's host tier to another's, at how many core-seconds a GB, and
//! how does that compare with the same bytes over gRPC? And how long does a prefill node take to hand a
//! prompt over to a decode node?
//!
//! Two sidecars and their clients in this process, on loopback, in turns: the data connection (a lookup
//! and a load of blocks of tier `peer`, checked on arrival, into shared memory) and `Cache.Read` over TCP
//! (the same blocks, thrown away). Core-seconds are of the whole process: both sides, and the client.

use refrain_benches::sidecar::{Sidecar, prompt, register};
use refrain_benches::{BLOCK_BYTES, Samples, gigabytes_per_second, is_smoke, scratch, tell};
use refrain_client::v1::cache_client::CacheClient;
use refrain_client::v1::{self, lookup_request, read_chunk};
use refrain_client::{Done, Prompt, Registration};
use refrain_server::config::{Config, Keep};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

const LAYERS: u32 = 61;
const CHUNK: u64 = 73_728;
/// Ticks of the kernel's accounts of processes.
const TICKS: f64 = 100.0;

/// One way that bytes went: how long, and how many cores' time.
struct Way {
    name: &'static str,
    times: Vec<Duration>,
    core_seconds: f64,
}

fn main() {
    let (blocks, rounds) = if is_smoke() { (10, 1) } else { (96, 9) };
    let runtime = Runtime::new().expect("threads");
    let directory = scratch();
    let at = free_address();
    let holder = {
        let mut config = config(&directory.path().join("a"), blocks * 3);
        config.peers.listen = Some(at);
        Sidecar::start_with(&runtime, config)
    };
    runtime.block_on(holder.client(1 << 20));
    let asker = {
        // Room for one prompt and not for two: of three in turn, each load comes from the peer whole.
        let mut config = config(&directory.path().join("b"), blocks);
        config.secret_file = Some(directory.path().join("a/secret"));
        config.peers.ask = vec![at.to_string().parse().expect("an address")];
        config.peers.lookup_deadline = Duration::from_secs(10);
        config.peers.keep = Keep::Never;
        Sidecar::start_with(&runtime, config)
    };
    runtime.block_on(run(&holder, &asker, at, blocks, rounds));
    asker.stop(&runtime);
    holder.stop(&runtime);
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound")
}

/// With room in memory for so many blocks, and some more.
fn config(directory: &Path, blocks: u32) -> Config {
    std::fs::create_dir_all(directory).expect("a place for a store");
    let bytes = u64::from(blocks) * BLOCK_BYTES;
    let mut config = Config::default_for(directory, (bytes * 4).max(512 << 20));
    config.load_arena = (bytes * 115 / 100).next_multiple_of(2 << 20).max(64 << 20);
    config.save_queue = 1 << 30;
    config
}

async fn run(holder: &Sidecar, asker: &Sidecar, at: SocketAddr, blocks: u32, rounds: u64) {
    let far = register(&holder.client(256 << 20).await, LAYERS, CHUNK).await;
    let near = register(&asker.client(16 << 20).await, LAYERS, CHUNK).await;
    let prompts = [1, 2, 3].map(|seed| prompt(seed, blocks));
    for tokens in &prompts {
        save(&far, tokens).await;
        load(&far, tokens).await;
    }
    let remote = Remote::connect(at).await;
    let (mut direct, mut messages) = (Way::new("data connection"), Way::new("Cache.Read over TCP"));
    // The first of each makes connections.
    for round in 0..=rounds {
        for tokens in &prompts {
            let begun = Begun::now();
            let done = load(&near, tokens).await;
            assert_eq!(done.peer_blocks, blocks, "{done:?}");
            direct.add(begun, round > 0);
            let begun = Begun::now();
            remote.read(tokens, blocks).await;
            messages.add(begun, round > 0);
        }
    }
    let bytes = u64::from(blocks) * BLOCK_BYTES;
    let rates = [&direct, &messages].map(|way| way.tell(bytes));
    tell([format!("data connection / gRPC: {:.2}", rates[0] / rates[1])]);
    hand_over(&far, &near, blocks).await;
}

/// A prompt is saved on one node, and loaded on the other as soon as that has answered.
async fn hand_over(far: &Registration, near: &Registration, blocks: u32) {
    let (mut after, mut whole) = (Vec::new(), Vec::new());
    for seed in 100..105 {
        let tokens = prompt(seed, blocks / 2);
        let begun = Instant::now();
        save(far, &tokens).await;
        let saved = Instant::now();
        let done = load(near, &tokens).await;
        assert_eq!(done.peer_blocks, blocks / 2, "{done:?}");
        after.push(saved.elapsed());
        whole.push(begun.elapsed());
    }
    let (after, whole) = (Samples::from(after).median(), Samples::from(whole).median());
    let mib = (u64::from(blocks / 2) * BLOCK_BYTES) >> 20;
    tell([format!(
        "hand-over of {} blocks ({mib} MiB): {after:.1?} from the save's answer to the last byte, \
         {whole:.1?} with the save",
        blocks / 2
    )]);
}

async fn save(registration: &Registration, tokens: &[u32]) {
    loop {
        let lookup = registration.lookup(Prompt::Tokens(tokens)).await.expect("a lookup");
        let (first, all) = (lookup.matched_blocks, lookup.prompt_blocks);
        let fill = |block: u32, payload: &mut [u8]| payload.fill(block.to_le_bytes()[0]);
        let saved = lookup.save(first, all - first, fill, false).await.expect("a save");
        lookup.release().await.expect("a release");
        if first + saved.saved == all {
            return;
        }
    }
}

async fn load(registration: &Registration, tokens: &[u32]) -> Done {
    let lookup = registration.lookup(Prompt::Tokens(tokens)).await.expect("a lookup");
    assert_eq!(lookup.matched_blocks, lookup.prompt_blocks, "all of it is somewhere");
    let mut load = lookup.load(0, lookup.matched_blocks, None).await.expect("a load");
    while load.next().await.expect("stripes").is_some() {}
    let done = load.done().expect("it has ended");
    assert_eq!(done.loaded_blocks, lookup.matched_blocks, "{done:?}");
    lookup.release().await.expect("a release");
    done
}

/// A client of another machine, without shared memory.
struct Remote {
    cache: CacheClient<Channel>,
    registration: u64,
}

impl Remote {
    async fn connect(at: SocketAddr) -> Self {
        // Windows as large as those of any tuned client.
        let endpoint = Endpoint::from_shared(format!("http://{at}")).expect("an address");
        let endpoint =
            endpoint.initial_stream_window_size(8 << 20).initial_connection_window_size(16 << 20);
        let channel = endpoint.connect().await.expect("a connection");
        let mut cache = CacheClient::new(channel).max_decoding_message_size(8 << 20);
        let request = v1::RegisterRequest {
            namespace: Some(refrain_benches::sidecar::namespace(LAYERS, CHUNK)),
            shard: 0,
            session: Vec::new(),
            block_bytes: u64::from(LAYERS) * CHUNK,
        };
        let answer = cache.register(request).await.expect("a registration").into_inner();
        Self { cache, registration: answer.registration }
    }

    async fn read(&self, tokens: &[u32], blocks: u32) {
        let mut cache = self.cache.clone();
        let tokens: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let request = v1::LookupRequest {
            registration: self.registration,
            prompt: Some(lookup_request::Prompt::Tokens(tokens.into())),
            extra_keys: Vec::new(),
            lease_ms: 0,
        };
        let lease = cache.lookup(request).await.expect("a lookup").into_inner().lease;
        let request = v1::ReadRequest { lease, first_block: 0, blocks, deadline_ms: 60_000 };
        let mut chunks = cache.read(request).await.expect("a read").into_inner();
        let mut received = 0;
        while let Some(chunk) = chunks.message().await.expect("chunks") {
            match chunk.chunk {
                Some(read_chunk::Chunk::Data(data)) => received += data.len(),
                Some(read_chunk::Chunk::Done(done)) => assert_eq!(done.loaded_blocks, blocks),
                None => {}
            }
        }
        assert_eq!(u64::try_from(received).ok(), Some(u64::from(blocks) * BLOCK_BYTES));
        cache.release(v1::ReleaseRequest { lease, load_us: 0 }).await.expect("a release");
    }
}

/// When something began, and what of the cores' time was spent by then.
#[derive(Clone, Copy)]
struct Begun {
    at: Instant,
    core_seconds: f64,
}

impl Begun {
    fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux tells");
        // The name may hold anything but a closing bracket behind which nothing is.
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        let fields: Vec<f64> =
            behind.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        // Without the state, which is a letter: user and system time are the 11th and 12th.
        Self { at: Instant::now(), core_seconds: (fields[10] + fields[11]) / TICKS }
    }
}

impl Way {
    fn new(name: &'static str) -> Self {
        Self { name, times: Vec::new(), core_seconds: 0.0 }
    }

    fn add(&mut self, begun: Begun, counts: bool) {
        if counts {
            self.times.push(begun.at.elapsed());
            self.core_seconds += Begun::now().core_seconds - begun.core_seconds;
        }
    }

    /// The median rate, said.
    fn tell(&self, bytes: u64) -> f64 {
        let rate = gigabytes_per_second(bytes, Samples::from(self.times.clone()).median());
        let rounds = u64::try_from(self.times.len()).expect("usize fits");
        let all = gigabytes_per_second(bytes * rounds, Duration::from_secs(1));
        let Self { name, core_seconds, .. } = self;
        tell([format!(
            "{name}: median {rate:.2} GB/s, {:.3} core-seconds a GB",
            core_seconds / all
        )]);
        rate
    }
}
