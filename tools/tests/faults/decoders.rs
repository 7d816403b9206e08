//! Every decoder of bytes from a disk, a socket, a memfd or a file of somebody else: whatever it is
//! given, it answers; and what it takes, it gives back as it was.
//!
//! Each begins with a committed corpus and changes it. Half of the time checksums are made right
//! again, so that what lies behind them is reached too.
#![expect(clippy::needless_pass_by_value, reason = "all targets are called alike")]

use crate::mutate::mutate;
use crate::progress::on_every_core;
use prost::Message;
use refrain::trace;
use refrain_index::catalog::Run;
use refrain_proto::{data, session, v1};
use refrain_server::config::Config;
use refrain_server::wire;
use refrain_store::format::{RecordHeader, checksum};
use refrain_store::geometry::SegmentId;
use refrain_store::segment::{
    HeadPage, SegmentHead, Trailer, decode_footer, encode_footer, footer_length,
};
use refrain_store::superblock::Superblock;
use std::os::unix::net::UnixStream;
use std::path::Path;

const PAGE: usize = 4096;
const STORE: [u8; 16] = [3; 16];

struct Target {
    name: &'static str,
    corpus: &'static [&'static [u8]],
    /// Whether the bytes were taken.
    decode: fn(Vec<u8>, &mut fastrand::Rng) -> bool,
}

const TARGETS: &[Target] = &[
    Target {
        name: "record header",
        corpus: &[include_bytes!("corpus/header-1"), include_bytes!("corpus/header-128")],
        decode: header,
    },
    Target { name: "segment head", corpus: &[include_bytes!("corpus/head")], decode: head },
    Target { name: "trailer", corpus: &[include_bytes!("corpus/trailer")], decode: trailer },
    Target { name: "footer", corpus: &[include_bytes!("corpus/footer")], decode: footer },
    Target {
        name: "superblock",
        corpus: &[include_bytes!("corpus/superblock")],
        decode: superblock,
    },
    Target {
        name: "catalogue value",
        corpus: &[include_bytes!("corpus/run")],
        decode: run_of_records,
    },
    Target { name: "hello", corpus: &[include_bytes!("corpus/hello")], decode: hello },
    Target { name: "welcome", corpus: &[include_bytes!("corpus/welcome")], decode: welcome },
    Target {
        name: "data connection",
        corpus: &[
            include_bytes!("corpus/data-hello"),
            include_bytes!("corpus/asks"),
            include_bytes!("corpus/pieces"),
        ],
        decode: data_connection,
    },
    Target {
        name: "registration",
        corpus: &[include_bytes!("corpus/register")],
        decode: registration,
    },
    Target { name: "prompt", corpus: &[include_bytes!("corpus/prompt")], decode: prompt },
    Target {
        name: "trace",
        corpus: &[include_bytes!("corpus/ids.jsonl"), include_bytes!("corpus/runs.jsonl")],
        decode: trace_lines,
    },
    Target {
        name: "config",
        corpus: &[include_bytes!("../../../docs/refrain.toml")],
        decode: config,
    },
];

pub(crate) fn run(count: u64, seed: u64) -> String {
    let taken = on_every_core(seed, |core, cores, mut random, rounds| {
        let mut taken = vec![0u64; TARGETS.len()];
        for round in (core as u64..count).step_by(cores) {
            let index = usize::try_from(round).unwrap() % TARGETS.len();
            let target = &TARGETS[index];
            let seed = random.u64(..);
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bytes = random.choice(target.corpus).unwrap().to_vec();
            if round >= TARGETS.len() as u64 {
                mutate(&mut bytes, &mut random, 64 << 10);
            }
            let decode = std::panic::AssertUnwindSafe(|| (target.decode)(bytes, &mut random));
            let decoded = std::panic::catch_unwind(decode);
            let was_taken = decoded.unwrap_or_else(|panic| {
                eprintln!("{}, round {seed:#x}", target.name);
                std::panic::resume_unwind(panic)
            });
            assert!(
                was_taken || round >= TARGETS.len() as u64,
                "{} refuses its corpus",
                target.name
            );
            taken[index] += u64::from(was_taken);
            if round % 512 == 0 {
                rounds.send(()).unwrap();
            }
        }
        taken
    });
    let each = TARGETS.iter().enumerate().map(|(index, target)| {
        let taken: u64 = taken.iter().map(|of_core| of_core[index]).sum();
        format!("{} {taken}", target.name)
    });
    format!("{count} inputs; taken: {}", each.collect::<Vec<_>>().join(", "))
}

/// Whole pages of these bytes, the checksum at the end of each made right, mostly.
fn pages(mut bytes: Vec<u8>, random: &mut fastrand::Rng) -> Vec<u8> {
    bytes.resize(bytes.len().max(1).next_multiple_of(PAGE), 0);
    if random.u8(..4) > 0 {
        for page in bytes.chunks_exact_mut(PAGE) {
            let sum = checksum(&page[..PAGE - 8]);
            page[PAGE - 8..].copy_from_slice(&sum.to_le_bytes());
        }
    }
    bytes
}

fn header(bytes: Vec<u8>, random: &mut fastrand::Rng) -> bool {
    let bytes = pages(bytes, random);
    let Ok(header) = RecordHeader::decode(bytes.first_chunk().unwrap()) else { return false };
    assert!(header.stored_length() >= header.payload_length);
    let again = RecordHeader::decode(&header.encode().unwrap()).unwrap();
    assert_eq!(again, header);
    true
}

fn head(bytes: Vec<u8>, random: &mut fastrand::Rng) -> bool {
    let bytes = pages(bytes, random);
    let HeadPage::Head(head) = SegmentHead::decode(bytes.first_chunk().unwrap(), STORE) else {
        return false;
    };
    assert_eq!(SegmentHead::decode(&head.encode(STORE), STORE), HeadPage::Head(head));
    true
}

fn trailer(bytes: Vec<u8>, random: &mut fastrand::Rng) -> bool {
    let bytes = pages(bytes, random);
    let page = bytes.first_chunk().unwrap();
    let Some(trailer) = Trailer::decode(page, STORE) else { return false };
    assert!(!Trailer::is_damaged(page));
    assert_eq!(Trailer::decode(&trailer.encode(STORE), STORE), Some(trailer));
    true
}

fn footer(bytes: Vec<u8>, random: &mut fastrand::Rng) -> bool {
    let entries = decode_footer(&bytes, random.usize(..600));
    for entry in &entries {
        // Whatever it says, it is a number.
        let _ = entry.stored_length();
    }
    let mut again = vec![0; usize::try_from(footer_length(entries.len())).unwrap()];
    encode_footer(&entries, &mut again);
    assert_eq!(decode_footer(&again, entries.len()), entries);
    !entries.is_empty() || bytes.len() < 144
}

fn superblock(bytes: Vec<u8>, random: &mut fastrand::Rng) -> bool {
    let bytes = if random.bool() { bytes } else { pages(bytes, random) };
    let Ok(superblock) = Superblock::decode(&bytes) else { return false };
    assert!(superblock.segment_bytes > 0 && superblock.capacity_bytes >= superblock.segment_bytes);
    assert_eq!(Superblock::decode(&superblock.encode()[..]), Ok(superblock));
    true
}

fn run_of_records(bytes: Vec<u8>, random: &mut fastrand::Rng) -> bool {
    let (segment, start) = (7, 8192);
    let bytes = if random.bool() { bytes } else { Run::resealed(segment, start, bytes) };
    let Some(run) = Run::decode(segment, start, &bytes) else { return false };
    assert_eq!(Run::decode(segment, start, &run.encode()), Some(run));
    true
}

/// A connection that `bytes` came over.
fn connection(bytes: &[u8]) -> UnixStream {
    let (one, other) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut &one, bytes).unwrap();
    other
}

fn hello(bytes: Vec<u8>, _: &mut fastrand::Rng) -> bool {
    // It brings no descriptor: so it is refused for that, once all else is right.
    let received = session::receive_hello(&connection(&bytes));
    matches!(received, Err(session::HandshakeError::Descriptors { found: 0 }))
}

fn welcome(bytes: Vec<u8>, _: &mut fastrand::Rng) -> bool {
    let received = session::receive_welcome(&connection(&bytes));
    matches!(received, Err(session::HandshakeError::Descriptors { found: 0 }))
}

/// Each kind of message that the bytes could be, one after the other.
fn data_connection(bytes: Vec<u8>, _: &mut fastrand::Rng) -> bool {
    let mut taken = false;
    for bytes in bytes.as_chunks().0 {
        taken |= is_given_back(data::Hello::decode(bytes).map(|hello| hello.encode()), bytes);
        taken |= is_given_back(data::Ask::decode(bytes).map(|ask| ask.encode()), bytes);
    }
    for bytes in bytes.as_chunks().0 {
        taken |= is_given_back(data::Welcome::decode(bytes).map(data::Welcome::encode), bytes);
    }
    for bytes in bytes.as_chunks().0 {
        taken |= is_given_back(data::Piece::decode(bytes).map(|piece| piece.encode()), bytes);
    }
    taken
}

fn is_given_back<const N: usize>(again: Result<[u8; N], data::DataError>, bytes: &[u8; N]) -> bool {
    if let Ok(again) = again {
        assert_eq!(again, *bytes);
    }
    again.is_ok()
}

/// From a message to a namespace: a name of its own, or a refusal that names a field.
fn registration(bytes: Vec<u8>, _: &mut fastrand::Rng) -> bool {
    let Ok(message) = v1::RegisterRequest::decode(&bytes[..]) else { return false };
    let again = v1::RegisterRequest::decode(&message.encode_to_vec()[..]).unwrap();
    assert_eq!(again, message);
    let namespace = match wire::namespace(message.namespace) {
        Ok(namespace) => namespace,
        Err(refused) => {
            assert!(!refused.to_string().is_empty());
            return false;
        }
    };
    assert_eq!(wire::namespace(again.namespace).unwrap(), namespace);
    namespace.digest().is_ok()
}

fn prompt(bytes: Vec<u8>, _: &mut fastrand::Rng) -> bool {
    let Ok(message) = v1::PromptName::decode(&bytes[..]) else { return false };
    assert_eq!(v1::PromptName::decode(&message.encode_to_vec()[..]).unwrap(), message);
    let digest = wire::array::<32>("namespace_digest", &message.namespace_digest);
    assert_eq!(digest.is_ok(), message.namespace_digest.len() == 32);
    let Some(v1::prompt_name::Prompt::Tokens(bytes)) = &message.prompt else { return false };
    let Ok(tokens) = wire::tokens(bytes) else {
        assert!(!bytes.len().is_multiple_of(4));
        return false;
    };
    let back: Vec<u8> = tokens.into_iter().flat_map(u32::to_le_bytes).collect();
    assert!(back == bytes[..], "tokens are not what was sent");
    digest.is_ok()
}

fn trace_lines(bytes: Vec<u8>, random: &mut fastrand::Rng) -> bool {
    let block_tokens = random.u64(1..2000);
    let taken = trace::parse(&bytes[..], block_tokens).take(1000).filter_map(Result::ok);
    for request in taken {
        assert!(request.blocks.len() as u64 <= request.input_tokens / block_tokens);
    }
    true
}

fn config(bytes: Vec<u8>, _: &mut fastrand::Rng) -> bool {
    let text = String::from_utf8_lossy(&bytes);
    // A refusal says where.
    Config::parse(&text, Path::new("mutated.toml"))
        .inspect_err(|error| assert!(!error.to_string().is_empty()))
        .is_ok()
}

/// Writes the binary corpora, from what today's encoders make.
#[expect(clippy::too_many_lines, reason = "one value of each kind")]
pub(crate) fn write_corpora(directory: &Path) {
    use refrain_store::format::Stripe;
    use refrain_store::geometry::{Generation, RecordAddress};
    let record = |stripes: u64| RecordHeader {
        store_id: STORE,
        address: RecordAddress { segment: SegmentId(7), generation: Generation(2), offset: 8192 },
        key_scheme: 1,
        sequence_hash: [1; 32],
        shard: 0,
        parent: [2; 32],
        namespace: [4; 32],
        epoch: 5,
        position: 6,
        payload_length: (stripes - 1) * 8192 + 5000,
        withdrawn: false,
        stripes: (0..stripes)
            .map(|index| Stripe { offset: index * 8192, length: 5000, checksum: index })
            .collect(),
    };
    let entry = |offset: u64| refrain_store::segment::Entry {
        offset,
        payload_length: 5000,
        sequence_hash: [1; 32],
        shard: 0,
        position: 6,
        parent: [2; 32],
        namespace: [4; 32],
        epoch: 5,
        key_scheme: 1,
        header_checksum: 9,
    };
    let entries: Vec<_> = (1..6).map(|index| entry(index * 12_288)).collect();
    let mut footer = vec![0; usize::try_from(footer_length(entries.len())).unwrap()];
    encode_footer(&entries, &mut footer);
    let id = SegmentId(7);
    let head = SegmentHead { id, generation: Generation(2), birth: 9 };
    let trailer = Trailer {
        id,
        generation: Generation(2),
        footer_offset: 1 << 20,
        entries: 5,
        footer_checksum: 4,
    };
    let superblock = Superblock {
        store_id: STORE,
        segment_bytes: 1 << 26,
        capacity_bytes: 1 << 30,
        sequence: 1,
    };
    let row = refrain_index::catalog::Row {
        offset: 8192,
        length: 5000,
        sequence: [1; 32],
        shard: 0,
        position: 6,
        parent: [2; 32],
        namespace: [4; 32],
        epoch: 5,
    };
    let run = Run {
        segment: 7,
        generation: 2,
        start: 8192,
        end: 32_768,
        sealed: true,
        rows: vec![row; 2],
    };
    let mut hello = [0; 64];
    hello[..8].copy_from_slice(b"REFRAINH");
    hello[8] = 1;
    hello[18] = 1;
    let mut welcome = [0; 64];
    welcome[..8].copy_from_slice(b"REFRAINW");
    welcome[8] = 1;
    let both = [&superblock.encode()[..], &superblock.encode()[..]].concat();
    let write = |name: &str, bytes: &[u8]| std::fs::write(directory.join(name), bytes).unwrap();
    write("header-1", &record(1).encode().unwrap()[..]);
    write("header-128", &record(128).encode().unwrap()[..]);
    write("head", &head.encode(STORE)[..]);
    write("trailer", &trailer.encode(STORE)[..]);
    write("footer", &footer);
    write("superblock", &both);
    write("run", &run.encode());
    write("hello", &hello);
    let hello =
        data::Hello { version: 1, ticket: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] };
    let refusal = data::Welcome::Ticket.encode();
    write("data-hello", &[&hello.encode()[..], &refusal].concat());
    let lease = 0x1122_3344_5566_7788;
    let ask = data::Ask::Blocks { lease, first: 10, blocks: 50, deadline_ms: 5000 };
    write("asks", &[ask, data::Ask::Taken].map(|ask| ask.encode()).concat());
    let pieces = [
        data::Piece::Header { block: 0 },
        data::Piece::Stripe { block: 0, stripe: 0, length: 294_912 },
        data::Piece::Stripe { block: 3, stripe: 15, length: 73_728 },
        data::Piece::End { loaded: 4, reason: data::EndReason::Complete },
        data::Piece::End { loaded: 2, reason: data::EndReason::Lease },
    ];
    write("pieces", &pieces.map(|piece| piece.encode()).concat());
    write("welcome", &welcome);
    write("register", &register().encode_to_vec());
    let tokens: Vec<u8> = (1..=128).flat_map(u32::to_le_bytes).collect();
    let name = v1::PromptName {
        namespace_digest: (0..32).collect(),
        shard: 1,
        prompt: Some(v1::prompt_name::Prompt::Tokens(tokens.into())),
        extra_keys: vec![b"image".to_vec()],
    };
    write("prompt", &name.encode_to_vec());
}

/// Every field of a namespace.
fn register() -> v1::RegisterRequest {
    use v1::attention_group::Kind;
    let groups = [(Kind::Full, 1, 0), (Kind::SlidingWindow, 2, 4096), (Kind::Recurrent, 1, 0)];
    let group = |(kind, layers, window_tokens): (Kind, u32, u32)| v1::AttentionGroup {
        kind: kind.into(),
        layers,
        window_tokens,
    };
    let namespace = v1::Namespace {
        tenant: "tenant".into(),
        model: "model".into(),
        weights: "revision".into(),
        config_digest: (0..32).collect(),
        kv_dtype: "bf16".into(),
        block_tokens: 64,
        layers: 4,
        layer_bytes: 40_000,
        layout: v1::KvLayout::KeyValue.into(),
        groups: groups.map(group).to_vec(),
        tensor_parallel: 2,
        pipeline_parallel: 1,
        context_parallel: 1,
        adapter_digest: b"adapter".to_vec(),
        salt: b"salt".to_vec(),
    };
    v1::RegisterRequest {
        namespace: Some(namespace),
        shard: 1,
        session: (0..16).collect(),
        block_bytes: 160_000,
    }
}
