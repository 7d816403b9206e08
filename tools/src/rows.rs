//! What commands print of blocks, namespaces and segments: the same of a running sidecar, which
//! tells its index, and of a stopped store, whose records speak for themselves.

use crate::hex::hex;
use refrain_client::v1;
use refrain_store::geometry::stored_length;
use refrain_store::segment::{Entry, SegmentHead};
use serde::Serialize;

/// One block, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Block {
    pub sequence_hash: String,
    pub shard: u32,
    pub namespace: String,
    pub drive: u32,
    pub segment: u32,
    pub generation: u64,
    pub offset: u64,
    pub stored_bytes: u64,
    /// Of a running sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_host: Option<bool>,
    /// Of a running sidecar: whether reclaim keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<bool>,
    /// Of a running sidecar: seconds since it was last matched or saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
}

impl Block {
    pub fn stopped(drive: u32, head: SegmentHead, entry: &Entry) -> Self {
        Self {
            sequence_hash: hex(&entry.sequence_hash),
            shard: entry.shard,
            namespace: hex(&entry.namespace),
            drive,
            segment: head.id.0,
            generation: head.generation.0,
            offset: entry.offset,
            stored_bytes: stored_length(entry.payload_length),
            in_host: None,
            pinned: None,
            idle_seconds: None,
        }
    }
}

impl From<v1::BlockInfo> for Block {
    fn from(block: v1::BlockInfo) -> Self {
        Self {
            sequence_hash: hex(&block.sequence_hash),
            shard: block.shard,
            namespace: hex(&block.namespace_digest),
            drive: block.drive,
            segment: block.segment,
            generation: block.generation,
            offset: block.offset,
            stored_bytes: block.stored_bytes,
            in_host: Some(block.in_host),
            pinned: Some(block.pinned),
            idle_seconds: Some(block.idle_seconds),
        }
    }
}

/// One namespace, and what it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Namespace {
    pub digest: String,
    pub blocks: u64,
    pub bytes: u64,
    /// Known once a worker has registered it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// Of a running sidecar: of the blocks that count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
}

impl From<v1::NamespaceInfo> for Namespace {
    fn from(namespace: v1::NamespaceInfo) -> Self {
        let v1::NamespaceInfo { digest, blocks, bytes, tenant, model, epoch } = namespace;
        Self { digest: hex(&digest), blocks, bytes, tenant, model, epoch: Some(epoch) }
    }
}

/// One segment as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    pub drive: u32,
    pub segment: u32,
    pub generation: u64,
    pub state: String,
    pub live_blocks: u64,
    pub live_bytes: u64,
    /// End of its last record.
    pub end: u64,
}

impl From<v1::SegmentInfo> for Segment {
    fn from(segment: v1::SegmentInfo) -> Self {
        let v1::SegmentInfo { drive, segment, generation, state, live_blocks, live_bytes, end } =
            segment;
        Self { drive, segment, generation, state, live_blocks, live_bytes, end }
    }
}

/// One prefix that reclaim keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pin {
    /// Of its last block.
    pub sequence_hash: String,
    pub shard: u32,
    pub namespace: String,
    pub blocks: u64,
    pub bytes: u64,
    /// Until it ends; absent where it never does by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
}

impl From<v1::PinInfo> for Pin {
    fn from(pin: v1::PinInfo) -> Self {
        let block = pin.block.unwrap_or_default();
        Self {
            sequence_hash: hex(&block.sequence_hash),
            shard: block.shard,
            namespace: hex(&pin.namespace_digest),
            blocks: pin.blocks,
            bytes: pin.bytes,
            left_ms: (pin.left_ms > 0).then_some(pin.left_ms),
        }
    }
}

/// One row of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Row {
    Block(Block),
    Namespace(Namespace),
    Segment(Segment),
    Pin(Pin),
}

impl From<v1::list_entry::Entry> for Row {
    fn from(entry: v1::list_entry::Entry) -> Self {
        match entry {
            v1::list_entry::Entry::Block(block) => Self::Block(block.into()),
            v1::list_entry::Entry::Namespace(namespace) => Self::Namespace(namespace.into()),
            v1::list_entry::Entry::Segment(segment) => Self::Segment(segment.into()),
            v1::list_entry::Entry::Pin(pin) => Self::Pin(pin.into()),
        }
    }
}

/// The head of a table of blocks; as many columns as [`Row::line`] writes.
pub const BLOCKS: &str =
    "block              shard  namespace     place            generation  offset        size  seen";
pub const NAMESPACES: &str = "namespace           blocks        size  epoch  tenant, model";
pub const PINS: &str = "last block         shard  namespace       blocks        size  ends";
pub const SEGMENTS: &str = "segment     state   generation   blocks        live         end";

impl Row {
    /// Its line in a table. Hashes are cut to what tells them apart among millions.
    pub fn line(&self) -> String {
        match self {
            Self::Block(block) => block.line(),
            Self::Namespace(namespace) => namespace.line(),
            Self::Segment(segment) => segment.line(),
            Self::Pin(pin) => pin.line(),
        }
    }
}

impl Block {
    fn line(&self) -> String {
        let Self { sequence_hash, shard, namespace, drive, segment, generation, offset, .. } = self;
        let place = format!("{drive}/{segment}");
        let seen = match (self.in_host, self.idle_seconds) {
            (Some(true), Some(idle)) => format!("{idle} s ago, in memory"),
            (_, Some(idle)) => format!("{idle} s ago"),
            (_, None) => "-".to_owned(),
        };
        let pinned = if self.pinned == Some(true) { ", pinned" } else { "" };
        let size = size(self.stored_bytes);
        format!(
            "{sequence_hash:.16}   {shard:>5}  {namespace:.12}  {place:<15}  {generation:>10}  \
             {offset:>10}  {size:>10}  {seen}{pinned}"
        )
    }
}

impl Namespace {
    fn line(&self) -> String {
        let Self { digest, blocks, bytes, tenant, model, epoch } = self;
        let name = match (tenant.as_str(), model.as_str()) {
            ("", "") => String::new(),
            (tenant, model) => format!("{tenant}, {model}"),
        };
        let epoch = epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string());
        let size = size(*bytes);
        let line = format!("{digest:.16}  {blocks:>8}  {size:>10}  {epoch:>5}  {name}");
        line.trim_end().to_owned()
    }
}

impl Segment {
    fn line(&self) -> String {
        let Self { drive, segment, generation, state, live_blocks, live_bytes, end } = self;
        let (place, live, end) = (format!("{drive}/{segment}"), size(*live_bytes), size(*end));
        format!(
            "{place:<10}  {state:<6}  {generation:>10}  {live_blocks:>7}  {live:>10}  {end:>10}"
        )
    }
}

impl Pin {
    fn line(&self) -> String {
        let Self { sequence_hash, shard, namespace, blocks, bytes, left_ms } = self;
        let size = size(*bytes);
        let ends = left_ms.map_or_else(
            || "when it is unpinned".to_owned(),
            |left| format!("in {} s", left.div_ceil(1000)),
        );
        format!(
            "{sequence_hash:.16}   {shard:>5}  {namespace:.12}  {blocks:>8}  {size:>10}  {ends}"
        )
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}
