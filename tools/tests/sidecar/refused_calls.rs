//! A call that cannot be right is refused at once, by what is wrong with it, and changes nothing.

use crate::fixture::content::{Shape, prompt};
use crate::fixture::node::{Node, Setup};
use crate::fixture::raw::Raw;
use refrain_client::v1::{self, attention_group::Kind, lookup_request};
use tonic::{Code, Status};

const SHAPE: Shape = Shape { shards: 2, ..Shape::new(4, 65_536) };

fn is(refused: &Status, code: Code, message: &str) {
    assert_eq!((refused.code(), refused.message()), (code, message));
}

#[track_caller]
fn is_invalid(refused: &Status, message: &str) {
    is(refused, Code::InvalidArgument, message);
}

type Change = fn(&mut v1::Namespace);

#[tokio::test]
async fn a_missing_namespace_field_is_named() {
    let node = Node::start(&Setup::default());
    let mut raw = Raw::connect(&node).await;
    let missing: [(&str, Change); 12] = [
        ("tenant", |it| it.tenant.clear()),
        ("model", |it| it.model.clear()),
        ("weights", |it| it.weights.clear()),
        ("config_digest", |it| it.config_digest.clear()),
        ("kv_dtype", |it| it.kv_dtype.clear()),
        ("block_tokens", |it| it.block_tokens = 0),
        ("layers", |it| it.layers = 0),
        ("layer_bytes", |it| it.layer_bytes = 0),
        ("groups", |it| it.groups.clear()),
        ("parallel.tensor", |it| it.tensor_parallel = 0),
        ("parallel.pipeline", |it| it.pipeline_parallel = 0),
        ("parallel.context", |it| it.context_parallel = 0),
    ];
    for (field, change) in missing {
        let mut request = raw.registering(SHAPE);
        change(request.namespace.as_mut().unwrap());
        let refused = raw.register(request).await.unwrap_err();
        let safe = "give it, as there is no safe default";
        is_invalid(&refused, &format!("namespace field `{field}` is missing; {safe}"));
    }
    let wire: [(&str, Change); 2] = [
        ("field `namespace.layout` is missing", |it| it.layout = 0),
        ("field `namespace.groups.kind` is missing", |it| it.groups[0].kind = 0),
    ];
    for (message, change) in wire {
        let mut request = raw.registering(SHAPE);
        change(request.namespace.as_mut().unwrap());
        is_invalid(&raw.register(request).await.unwrap_err(), message);
    }
    let request = v1::RegisterRequest { namespace: None, ..raw.registering(SHAPE) };
    is_invalid(&raw.register(request).await.unwrap_err(), "field `namespace` is missing");
}

#[tokio::test]
async fn a_namespace_that_contradicts_itself_or_the_caller_is_refused() {
    let node = Node::start(&Setup::default());
    let mut raw = Raw::connect(&node).await;
    let request = v1::RegisterRequest { block_bytes: 262_143, ..raw.registering(SHAPE) };
    is_invalid(
        &raw.register(request).await.unwrap_err(),
        "block of 262143 bytes does not fit the namespace: 4 layers of 65536 bytes are 262144",
    );
    let request = v1::RegisterRequest { shard: 2, ..raw.registering(SHAPE) };
    is_invalid(
        &raw.register(request).await.unwrap_err(),
        "shard 2 is not among the 2 of the parallel shape",
    );
    let mut request = raw.registering(SHAPE);
    request.namespace.as_mut().unwrap().groups[0].layers = 3;
    is_invalid(
        &raw.register(request).await.unwrap_err(),
        "attention groups cover 3 layers, the model has 4",
    );
    let mut request = raw.registering(SHAPE);
    request.namespace.as_mut().unwrap().groups[0].kind = Kind::SlidingWindow.into();
    is_invalid(
        &raw.register(request).await.unwrap_err(),
        "window_tokens of attention group 0 is missing, as it is a sliding window",
    );
    let request = v1::RegisterRequest { session: vec![1; 5], ..raw.registering(SHAPE) };
    is_invalid(&raw.register(request).await.unwrap_err(), "session has 5 bytes, not 16");
    let request = v1::RegisterRequest { session: vec![1; 16], ..raw.registering(SHAPE) };
    let refused = raw.register(request).await.unwrap_err();
    is(&refused, Code::NotFound, "session is not known: it has ended");
    // Larger than a segment of 4 MiB has room for.
    let refused = raw.register(raw.registering(Shape::new(61, 73_728))).await.unwrap_err();
    is(
        &refused,
        Code::FailedPrecondition,
        "block takes 4501504 bytes on disk, segments hold records of at most 4177920: give larger \
         segments or a larger capacity",
    );
}

#[tokio::test]
async fn what_has_ended_or_never_was_is_not_found() {
    let node = Node::start(&Setup::default());
    let mut raw = Raw::connect(&node).await;
    let refused = raw.lookup(99, &prompt(1, 2), 0).await.unwrap_err();
    is(&refused, Code::NotFound, "registration is not known: register again");
    let lease = "lease is not known: it has ended";
    is(&raw.read(99, 1).await.unwrap_err(), Code::NotFound, lease);
    is(&raw.reserve(99, 0, 1).await.unwrap_err(), Code::NotFound, lease);
    let load = v1::LoadRequest { lease: 99, first_block: 0, blocks: 1, deadline_ms: 0 };
    is(&raw.cache.load(load).await.unwrap_err(), Code::NotFound, lease);
    assert!(!raw.release(99).await, "a lease that is over is an answer");
    let reservation = "reservation is not known: it has ended";
    is(&raw.commit(99, Vec::new()).await.unwrap_err(), Code::NotFound, reservation);
    is(&raw.write(99, &[0; 10]).await.unwrap_err(), Code::NotFound, reservation);
    let aborted = raw.cache.abort(v1::AbortRequest { reservation: 99 }).await.unwrap_err();
    is(&aborted, Code::NotFound, reservation);
}

#[tokio::test]
async fn a_prompt_that_means_nothing_is_refused() {
    let node = Node::start(&Setup::default());
    let mut raw = Raw::connect(&node).await;
    let registration = raw.registered(SHAPE).await.registration;
    let mut request = v1::LookupRequest { registration, ..Default::default() };
    let refused = raw.cache.lookup(request.clone()).await.unwrap_err();
    is_invalid(&refused, "field `prompt` is missing");
    request.prompt = Some(lookup_request::Prompt::Tokens(vec![0; 66].into()));
    let refused = raw.cache.lookup(request).await.unwrap_err();
    is_invalid(&refused, "tokens have 66 bytes, not a multiple of 4");
    let lookup = raw.lookup(registration, &prompt(1, 2), 0).await.unwrap();
    assert_eq!(lookup.matched_blocks, 0);
    is_invalid(
        &raw.read(lookup.lease, 1).await.unwrap_err(),
        "blocks are not among the 0 that the lookup matched",
    );
    for (first, blocks) in [(1, 2), (3, 0), (u32::MAX, 2)] {
        is_invalid(
            &raw.reserve(lookup.lease, first, blocks).await.unwrap_err(),
            &format!("blocks {first}+{blocks} are not among the prompt's 2"),
        );
    }
    assert_eq!(raw.reserve(lookup.lease, 1, 1).await.unwrap().refusal(), v1::Refusal::NoParent);
}

#[tokio::test]
async fn a_commit_of_other_bytes_than_were_reserved_is_refused() {
    const ARENA: u64 = 1 << 20;
    let node = Node::start(&Setup::default());
    let mut raw = Raw::with_session(&node, ARENA).await;
    let registered = raw.registered(SHAPE).await;
    let payload_bytes = registered.payload_bytes;
    let lookup = raw.lookup(registered.registration, &prompt(1, 3), 0).await.unwrap();
    let reservation = raw.reserve(lookup.lease, 0, 3).await.unwrap().reservation;
    let good = v1::Placed { block: 0, payload_offset: 0, payload_bytes };
    let outside = |block, byte| {
        format!("block {block} at byte {byte} does not lie in the session arena, page by page")
    };
    let wrong = [
        (
            v1::Placed { payload_bytes: payload_bytes + 1, ..good },
            format!("block 0 has 262145 bytes, its registration declares {payload_bytes}"),
        ),
        (v1::Placed { payload_offset: 100, ..good }, outside(0, 100)),
        (v1::Placed { payload_offset: ARENA - 4096, ..good }, outside(0, ARENA - 4096)),
        (v1::Placed { payload_offset: u64::MAX - 4095, ..good }, outside(0, u64::MAX - 4095)),
        (
            v1::Placed { block: 1, ..good },
            "block 1 is sent, the reservation awaits block 0".to_owned(),
        ),
        (
            v1::Placed { block: 77, ..good },
            "block 77 is sent, the reservation awaits block 0".to_owned(),
        ),
    ];
    for (placed, message) in wrong {
        is_invalid(&raw.commit(reservation, vec![placed]).await.unwrap_err(), &message);
    }
    let twice = raw.commit(reservation, vec![good, good]).await.unwrap_err();
    is_invalid(&twice, "block 0 is sent, the reservation awaits block 1");
    assert_eq!(node.stats().await.blocks, 0);

    // None of that has cost the reservation anything.
    let saved = raw.commit(reservation, vec![good]).await.unwrap();
    assert_eq!((saved.saved_blocks, node.stats().await.blocks), (1, 1));
    let lone = Raw::connect(&node).await.registered(SHAPE).await.registration;
    let lookup = raw.lookup(lone, &prompt(2, 1), 0).await.unwrap();
    let reservation = raw.reserve(lookup.lease, 0, 1).await.unwrap().reservation;
    let refused = raw.commit(reservation, vec![good]).await.unwrap_err();
    is_invalid(&refused, "registration has no session: write its blocks as chunks");
}

#[tokio::test]
async fn a_write_of_more_or_less_than_was_reserved_is_refused() {
    let node = Node::start(&Setup::default());
    let mut raw = Raw::connect(&node).await;
    let registered = raw.registered(SHAPE).await;
    let block = usize::try_from(registered.payload_bytes).unwrap();
    let lookup = raw.lookup(registered.registration, &prompt(1, 2), 0).await.unwrap();
    let reservation = raw.reserve(lookup.lease, 0, 2).await.unwrap().reservation;
    let bytes = vec![7; block * 2 + 1];
    for (length, expected) in [(block * 2 + 1, block * 2), (block + 10, block * 2), (10, block)] {
        let refused = raw.write(reservation, &bytes[..length]).await.unwrap_err();
        is_invalid(
            &refused,
            &format!("{length} bytes are sent, the reserved blocks have {expected}"),
        );
    }
    let startless =
        v1::WriteChunk { chunk: Some(v1::write_chunk::Chunk::Data(vec![7; 10].into())) };
    let refused = raw.cache.write(tokio_stream::iter([startless])).await.unwrap_err();
    is_invalid(&refused, "field `start` is missing");
    assert_eq!(node.stats().await.blocks, 0);
    let saved = raw.write(reservation, &bytes[..block * 2]).await.unwrap();
    assert_eq!((saved.saved_blocks, node.stats().await.blocks), (2, 2));
}
