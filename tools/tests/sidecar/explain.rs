//! Of each block of a prompt the sidecar says why it hits or misses, and says nothing that it does
//! not know. Asking is no hit.

use crate::fixture::content::{Shape, engine_hashes, prompt, tokens};
use crate::fixture::node::{MIB, Node, Setup, home, refrain};
use crate::fixture::raw::Raw;
use crate::fixture::worker::Worker;
use crate::fixture::{PATIENCE, eventually};
use refrain::hex::hex;
use refrain_client::v1::{self, Fate, Refusal, explain_request::Subject, prompt_name};
use tonic::Code;

const SHAPE: Shape = Shape::new(4, 31_000);

async fn ask(node: &Node, subject: Subject) -> Result<v1::ExplainResponse, tonic::Status> {
    let request = v1::ExplainRequest { subject: Some(subject) };
    node.admin().await.explain(request).await.map(tonic::Response::into_inner)
}

fn by_tokens(namespace: &[u8], ids: &[u64]) -> Subject {
    let bytes: Vec<u8> = tokens(ids).into_iter().flat_map(u32::to_le_bytes).collect();
    named(namespace, prompt_name::Prompt::Tokens(bytes.into()))
}

fn named(namespace: &[u8], prompt: prompt_name::Prompt) -> Subject {
    Subject::Prompt(v1::PromptName {
        namespace_digest: namespace.to_vec(),
        shard: 0,
        prompt: Some(prompt),
        extra_keys: Vec::new(),
    })
}

/// Runs as they were told: first block, blocks, fate.
fn fates(answer: &v1::ExplainResponse) -> Vec<(u32, u32, Fate)> {
    answer.runs.iter().map(|run| (run.first_block, run.blocks, run.fate())).collect()
}

async fn explained(node: &Node, namespace: &[u8], ids: &[u64]) -> v1::ExplainResponse {
    ask(node, by_tokens(namespace, ids)).await.unwrap()
}

/// The digest of a namespace, by registering it.
async fn digest(node: &Node, namespace: v1::Namespace) -> Vec<u8> {
    let mut raw = Raw::connect(node).await;
    let request = v1::RegisterRequest { namespace: Some(namespace), ..raw.registering(SHAPE) };
    raw.register(request).await.unwrap().namespace_digest
}

async fn ours(node: &Node) -> Vec<u8> {
    digest(node, SHAPE.namespace("tenant")).await
}

/// Loads blocks that are on SSD; they are in the host tier a moment after their last stripe.
async fn in_memory(node: &Node, worker: &Worker, ids: &[u64]) {
    worker.has_all(ids).await;
    eventually("they are in the host tier", PATIENCE, async || {
        let count = node.blocks().await.iter().filter(|block| block.in_host).count();
        (count == ids.len()).then_some(())
    })
    .await;
}

async fn idle_ticks(node: &Node) -> Vec<(Vec<u8>, u64)> {
    let blocks = node.blocks().await;
    blocks.into_iter().map(|block| (block.sequence_hash, block.idle_seconds)).collect()
}

#[tokio::test]
async fn resident_blocks_are_told_by_tier_and_the_rest_as_not_known() {
    let node = Node::start(&Setup::default());
    let (worker, namespace) = (Worker::new(&node, SHAPE).await, ours(&node).await);
    let ids = prompt(1, 9);
    worker.save(&ids[..6]).await;
    in_memory(&node, &worker, &ids[..2]).await;
    let mut asked = tokens(&ids);
    asked.extend([7; 5]);
    let bytes: Vec<u8> = asked.into_iter().flat_map(u32::to_le_bytes).collect();
    let before = node.stats().await;
    let found = ask(&node, named(&namespace, prompt_name::Prompt::Tokens(bytes.into()))).await;
    let found = found.unwrap();
    let expected = [(0, 2, Fate::Host), (2, 4, Fate::Ssd), (6, 3, Fate::Unknown)];
    assert_eq!(fates(&found), expected);
    assert_eq!((found.prompt_blocks, found.matched_blocks, found.tail_tokens), (9, 6, 5));
    assert!(found.other_namespace.is_none());
    assert_eq!(found.removals_known_ms, found.uptime_ms, "nothing was forgotten yet");
    let after = node.stats().await;
    assert_eq!((after.lookups, after.leases), (before.lookups, before.leases), "it is no lookup");
}

#[tokio::test]
async fn who_asks_why_makes_no_block_younger() {
    let node = Node::start(&Setup::default());
    let (worker, namespace) = (Worker::new(&node, SHAPE).await, ours(&node).await);
    let ids = prompt(2, 4);
    worker.save(&ids).await;
    eventually("they are a second old", PATIENCE, async || {
        idle_ticks(&node).await.iter().all(|(_, idle)| *idle >= 1).then_some(())
    })
    .await;
    assert_eq!(fates(&explained(&node, &namespace, &ids).await), [(0, 4, Fate::Ssd)]);
    assert!(idle_ticks(&node).await.iter().all(|(_, idle)| *idle >= 1));
}

#[tokio::test]
async fn what_an_operator_removed_is_told_with_what_stood_behind_it() {
    let node = Node::start(&Setup::default());
    let (worker, namespace) = (Worker::new(&node, SHAPE).await, ours(&node).await);
    let ids = prompt(3, 6);
    worker.save(&ids).await;
    let mut blocks = node.blocks().await;
    blocks.sort_unstable_by_key(|block| block.offset);
    let sequence_hash = blocks[3].sequence_hash.clone();
    let evict = v1::EvictRequest { sequence_hash: sequence_hash.clone(), shard: 0 };
    node.admin().await.evict(evict).await.unwrap();
    let found = explained(&node, &namespace, &ids).await;
    let expected = [(0, 3, Fate::Ssd), (3, 1, Fate::Evicted), (4, 2, Fate::Evicted)];
    assert_eq!(fates(&found), expected);
    assert_eq!((found.runs[1].behind, found.runs[2].behind), (false, true));
    // By its hash alone, as an event or a log names it.
    let names = v1::BlockNames { sequence_hashes: vec![sequence_hash], ..Default::default() };
    let found = ask(&node, Subject::Blocks(names)).await.unwrap();
    assert_eq!(fates(&found), [(0, 1, Fate::Evicted)]);
    let dropping = v1::DropNamespaceRequest { namespace_digest: namespace.clone() };
    node.admin().await.drop_namespace(dropping).await.unwrap();
    let found = explained(&node, &namespace, &ids).await;
    assert_eq!(found.runs[0].fate(), Fate::Dropped);
    // Saved again, they are what they are now.
    worker.save(&ids).await;
    assert_eq!(fates(&explained(&node, &namespace, &ids).await), [(0, 6, Fate::Ssd)]);
}

#[tokio::test]
async fn what_was_reclaimed_is_told_with_whose_saves_it_made_room_for() {
    let setup = Setup { capacity: 32 * MIB, ..Setup::default() };
    let node = Node::start(&setup.with("lease_default = \"60s\""));
    let (worker, namespace) = (Worker::new(&node, SHAPE).await, ours(&node).await);
    let ids = prompt(4, 4);
    worker.save(&ids).await;
    let other = Worker::of_tenant(&node, SHAPE, "crowd").await;
    let crowd = digest(&node, SHAPE.namespace("crowd")).await;
    let mut seeds = 1000..;
    eventually("it is reclaimed", PATIENCE, async || {
        other.save(&prompt(seeds.next().unwrap(), 8)).await;
        let found = explained(&node, &namespace, &ids).await;
        if found.matched_blocks > 0 {
            return None;
        }
        let runs = found.runs;
        assert!(runs.iter().all(|run| run.fate() == Fate::Reclaimed), "{runs:?}");
        assert!(runs.iter().all(|run| run.for_namespace == crowd), "{runs:?}");
        Some(())
    })
    .await;
}

#[tokio::test]
async fn what_was_refused_is_told_with_why() {
    let node = Node::start(&Setup::default().with("save_queue = \"1MiB\""));
    let (worker, namespace) = (Worker::new(&node, SHAPE).await, ours(&node).await);
    let ids = prompt(5, 64);
    let lookup = worker.lookup(&ids).await.unwrap();
    let (fitting, rest) = {
        let mut raw = Raw::connect(&node).await;
        let registration = raw.registered(SHAPE).await.registration;
        let lease = raw.lookup(registration, &ids, 0).await.unwrap().lease;
        // A block whose parent is not there.
        let orphan = raw.reserve(lease, 3, 2).await.unwrap();
        assert_eq!(orphan.refusal(), Refusal::NoParent);
        let found = explained(&node, &namespace, &ids[..6]).await;
        let expected = [(0, 3, Fate::Unknown), (3, 2, Fate::Refused), (5, 1, Fate::Unknown)];
        assert_eq!(fates(&found), expected);
        assert_eq!(found.runs[1].refusal(), Refusal::NoParent);
        // More than the queue takes.
        let reserved = raw.reserve(lease, 0, 64).await.unwrap();
        assert_eq!(reserved.refusal(), Refusal::Busy);
        let fitting = u32::try_from(reserved.blocks.len()).unwrap();
        (fitting, 64 - fitting)
    };
    let found = explained(&node, &namespace, &ids).await;
    let last = found.runs.last().unwrap();
    assert_eq!((last.first_block, last.blocks), (fitting, rest));
    assert_eq!((last.fate(), last.refusal()), (Fate::Refused, Refusal::Busy));
    lookup.release().await.unwrap();
}

#[tokio::test]
async fn what_is_damaged_is_told_when_it_was_found() {
    let node = Node::start(&Setup::default());
    let (worker, namespace) = (Worker::new(&node, SHAPE).await, ours(&node).await);
    let ids = prompt(6, 5);
    worker.save_durably(&ids).await;
    let mut blocks = node.blocks().await;
    blocks.sort_unstable_by_key(|block| block.offset);
    node.flip(blocks[2].segment, blocks[2].offset + 4096 + 100);
    in_memory(&node, &worker, &ids[..2]).await;
    assert_eq!(worker.load(&ids).await.loaded, 2);
    let found = explained(&node, &namespace, &ids).await;
    let expected = [(0, 2, Fate::Host), (2, 1, Fate::Damaged), (3, 2, Fate::Damaged)];
    assert_eq!(fates(&found), expected);
    assert_eq!((found.runs[1].behind, found.runs[2].behind), (false, true));
    assert!(found.runs[1].ago_ms <= found.uptime_ms);
}

#[tokio::test]
async fn a_namespace_that_differs_in_one_field_is_named_with_that_field() {
    let node = Node::start(&Setup::default());
    let (worker, _) = (Worker::new(&node, SHAPE).await, ours(&node).await);
    let ids = prompt(7, 5);
    worker.save(&ids[..4]).await;
    let mut changed = SHAPE.namespace("tenant");
    changed.weights = "revision 2".into();
    let changed = digest(&node, changed).await;
    let found = explained(&node, &changed, &ids).await;
    assert_eq!(fates(&found), [(0, 4, Fate::OtherNamespace), (4, 1, Fate::Unknown)]);
    let other = found.other_namespace.unwrap();
    let expected = v1::FieldDifference {
        field: "weights".into(),
        here: "revision 2".into(),
        there: "revision 1".into(),
    };
    assert_eq!((other.differences, other.matched_blocks), (vec![expected], 4));
    assert_eq!(other.namespace_digest, ours(&node).await);
    // One that shares neither tenant nor model is not asked.
    let foreign = v1::Namespace { model: "another".into(), ..SHAPE.namespace("another tenant") };
    let found = explained(&node, &digest(&node, foreign).await, &ids).await;
    assert_eq!((fates(&found), found.other_namespace), (vec![(0, 5, Fate::Unknown)], None));
    // Blocks of half as many tokens: two of theirs cover one of ours.
    let mut halves = SHAPE.namespace("tenant");
    halves.block_tokens = 32;
    let found = explained(&node, &digest(&node, halves).await, &ids).await;
    assert_eq!(fates(&found), [(0, 2, Fate::OtherNamespace)]);
    assert_eq!((found.prompt_blocks, found.tail_tokens), (2, 16));
    let fields = found.other_namespace.unwrap().differences;
    assert_eq!((fields.len(), fields[0].field.as_str()), (1, "block_tokens"));
}

#[tokio::test]
async fn engine_hashes_in_a_wrong_order_are_stored_but_no_prefix() {
    let node = Node::start(&Setup::default());
    let namespace = ours(&node).await;
    let worker = Worker::with(node.client().await, SHAPE, 0, true).await;
    let ids = prompt(8, 3);
    worker.save(&ids).await;
    let mut hashes = engine_hashes(&ids);
    let found = |hashes: Vec<Vec<u8>>| {
        let (node, namespace) = (&node, &namespace);
        let prompt = prompt_name::Prompt::Engine(v1::EngineHashes { hashes, separate: false });
        async move { fates(&ask(node, named(namespace, prompt)).await.unwrap()) }
    };
    assert_eq!(found(hashes.clone()).await, [(0, 3, Fate::Ssd)]);
    hashes.swap(1, 2);
    assert_eq!(found(hashes).await, [(0, 1, Fate::Ssd), (1, 2, Fate::Elsewhere)]);
}

#[tokio::test]
async fn a_start_forgets_and_says_so() {
    let mut node = Node::start(&Setup::default());
    let worker = Worker::new(&node, SHAPE).await;
    let (ids, namespace) = (prompt(9, 3), ours(&node).await);
    worker.save(&ids).await;
    let dropping = v1::DropNamespaceRequest { namespace_digest: namespace.clone() };
    node.admin().await.drop_namespace(dropping).await.unwrap();
    worker.save_durably(&ids[..1]).await;
    node.kill();
    node.start_again();
    let undescribed = ask(&node, by_tokens(&namespace, &ids)).await.unwrap_err();
    assert_eq!(undescribed.code(), Code::FailedPrecondition);
    assert!(undescribed.message().contains("no worker has registered it since the start"));
    let unknown = ask(&node, by_tokens(&[9; 32], &ids)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(ours(&node).await, namespace);
    let found = explained(&node, &namespace, &ids).await;
    assert_eq!(fates(&found), [(0, 1, Fate::Ssd), (1, 2, Fate::Unknown)]);
    assert_eq!(found.removals_known_ms, found.uptime_ms);
}

#[tokio::test]
async fn a_command_explains_a_prompt_from_a_file_and_blocks_by_their_hash() {
    let node = Node::start(&Setup::default());
    let (worker, namespace) = (Worker::new(&node, SHAPE).await, ours(&node).await);
    let ids = prompt(10, 4);
    worker.save(&ids[..3]).await;
    let (address, folder) = (node.address().to_string(), home());
    let path = folder.path().join("prompt.json");
    std::fs::write(&path, format!("{:?}\n", tokens(&ids))).unwrap();
    let path = path.display().to_string();
    let shown = refrain(["explain", "--tokens", &path, "--addr", &address]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.out.starts_with("3 of 4 blocks hit\n0..2 "), "{shown:?}");
    assert!(shown.out.contains("never stored, or removed before the sidecar started"), "{shown:?}");
    let json = refrain(["explain", "--tokens", &path, "--json", "--addr", &address]).json();
    assert_eq!(
        (&json["runs"][0]["fate"], &json["runs"][1]["fate"]),
        (&"ssd".into(), &"unknown".into())
    );
    let first = json["runs"][0]["sequence_hash"].as_str().unwrap().to_owned();
    let shown = refrain(["explain", &first, "--json", "--addr", &address]);
    assert_eq!(shown.json()["matched_blocks"], 1, "{shown:?}");
    refrain(["explain", &first[..9], "--addr", &address]).refused("give all 64 digits");
    // With a second namespace it must be said which is meant.
    digest(&node, SHAPE.namespace("other")).await;
    refrain(["explain", "--tokens", &path, "--addr", &address]).refused("say --namespace:");
    let name = &hex(&namespace)[..12];
    let json =
        refrain(["explain", "--tokens", &path, "--namespace", name, "--json", "--addr", &address]);
    assert_eq!(json.json()["matched_blocks"], 3);
}
