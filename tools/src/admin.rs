//! Calls to a running sidecar, one at a time, each with a deadline.

use crate::hex::HashPrefix;
use crate::prefix::Prefix;
use anyhow::{Result, anyhow};
use refrain_client::Address;
use refrain_client::v1;
use refrain_client::v1::admin_client::AdminClient;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::error::Elapsed;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

/// A sidecar answers at once, or is in trouble.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a drain, and between two messages of a stream: what runs is finished first.
const LONG_PATIENCE: Duration = Duration::from_mins(2);

/// A connection for as long as the command runs.
#[derive(Debug)]
pub struct Admin {
    runtime: Runtime,
    client: AdminClient<Channel>,
}

impl Admin {
    pub fn connect(address: &Address) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connecting =
            async { tokio::time::timeout(PATIENCE, refrain_client::admin(address)).await };
        let client = match runtime.block_on(connecting) {
            Ok(connected) => connected.map_err(|error| {
                anyhow!(error).context(format!(
                    "no sidecar answers at {address}: start one, name another by --addr, or give \
                     the --dir of a stopped store"
                ))
            })?,
            Err(_) => return Err(late("connect")),
        };
        Ok(Self { runtime, client })
    }

    pub fn stats(&mut self) -> Result<v1::StatsResponse> {
        let Self { runtime, client } = self;
        let call = async { within(PATIENCE, client.stats(v1::StatsRequest {})).await };
        answer("give its numbers", runtime.block_on(call))
    }

    /// Calls `each` for what is listed, until there is no more or it fails; 0 lists all.
    pub fn list(
        &mut self,
        what: v1::list_request::What,
        limit: u64,
        mut each: impl FnMut(v1::list_entry::Entry) -> Result<()>,
    ) -> Result<()> {
        const CALL: &str = "list";
        let request = v1::ListRequest { what: what.into(), limit };
        let Self { runtime, client } = self;
        let call = async { within(PATIENCE, client.list(request)).await };
        let mut stream = answer(CALL, runtime.block_on(call))?;
        while let Some(message) = next(runtime, CALL, &mut stream)? {
            if let Some(entry) = message.entry {
                each(entry)?;
            }
        }
        Ok(())
    }

    /// The records of blocks whose hash begins so.
    pub fn inspect_blocks(&mut self, prefix: &HashPrefix) -> Result<Vec<v1::RecordInfo>> {
        let subject = Some(v1::inspect_request::Subject::HashPrefix(prefix.bytes()));
        let request = v1::InspectRequest { subject, hash_digits: prefix.digits() };
        Ok(self.inspect(request)?.records)
    }

    pub fn inspect_segment(&mut self, drive: u32, segment: u32) -> Result<v1::InspectResponse> {
        let name = v1::SegmentName { drive, segment };
        let subject = Some(v1::inspect_request::Subject::Segment(name));
        self.inspect(v1::InspectRequest { subject, hash_digits: 0 })
    }

    fn inspect(&mut self, request: v1::InspectRequest) -> Result<v1::InspectResponse> {
        let Self { runtime, client } = self;
        let call = async { within(PATIENCE, client.inspect(request)).await };
        answer("inspect", runtime.block_on(call))
    }

    pub fn explain(
        &mut self,
        subject: v1::explain_request::Subject,
    ) -> Result<v1::ExplainResponse> {
        let Self { runtime, client } = self;
        let request = v1::ExplainRequest { subject: Some(subject) };
        let call = async { within(LONG_PATIENCE, client.explain(request)).await };
        answer("explain", runtime.block_on(call))
    }

    /// Has every block read and checked; calls `each` for what is found on the way.
    pub fn verify(
        &mut self,
        bytes_per_second: u64,
        mut each: impl FnMut(v1::VerifyProgress),
    ) -> Result<()> {
        const CALL: &str = "verify";
        let Self { runtime, client } = self;
        let request = v1::VerifyRequest { bytes_per_second };
        let call = async { within(PATIENCE, client.verify(request)).await };
        let mut stream = answer(CALL, runtime.block_on(call))?;
        while let Some(progress) = next(runtime, CALL, &mut stream)? {
            each(progress);
        }
        Ok(())
    }

    /// Without a time it never ends by itself.
    pub fn pin(&mut self, prefix: Prefix, time: Option<Duration>) -> Result<v1::PinResponse> {
        let Self { runtime, client } = self;
        let prefix = Some(match prefix {
            Prefix::Block(block) => v1::pin_request::Prefix::Block(block),
            Prefix::Prompt(prompt) => v1::pin_request::Prefix::Prompt(prompt),
        });
        let ttl = time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1));
        let request = v1::PinRequest { prefix, ttl_ms: ttl };
        let call = async { within(PATIENCE, client.pin(request)).await };
        answer("pin a prefix", runtime.block_on(call))
    }

    /// How many pins ended.
    pub fn unpin(&mut self, prefix: Prefix) -> Result<u64> {
        let Self { runtime, client } = self;
        let prefix = Some(match prefix {
            Prefix::Block(block) => v1::unpin_request::Prefix::Block(block),
            Prefix::Prompt(prompt) => v1::unpin_request::Prefix::Prompt(prompt),
        });
        let call = async { within(PATIENCE, client.unpin(v1::UnpinRequest { prefix })).await };
        Ok(answer("unpin a prefix", runtime.block_on(call))?.pins)
    }

    /// How many blocks went: this one, and all behind it.
    pub fn evict(&mut self, sequence_hash: Vec<u8>, shard: u32) -> Result<u64> {
        let Self { runtime, client } = self;
        let request = v1::EvictRequest { sequence_hash, shard };
        let call = async { within(PATIENCE, client.evict(request)).await };
        Ok(answer("evict", runtime.block_on(call))?.blocks)
    }

    /// How many blocks went.
    pub fn drop_namespace(&mut self, namespace_digest: Vec<u8>) -> Result<u64> {
        let Self { runtime, client } = self;
        let request = v1::DropNamespaceRequest { namespace_digest };
        let call = async { within(LONG_PATIENCE, client.drop_namespace(request)).await };
        Ok(answer("drop a namespace", runtime.block_on(call))?.blocks)
    }

    pub fn set_epoch(
        &mut self,
        namespace_digest: Vec<u8>,
        epoch: u64,
    ) -> Result<v1::SetEpochResponse> {
        let Self { runtime, client } = self;
        let request = v1::SetEpochRequest { namespace_digest, epoch };
        let call = async { within(LONG_PATIENCE, client.set_epoch(request)).await };
        answer("set an epoch", runtime.block_on(call))
    }

    pub fn nodes(&mut self) -> Result<v1::NodesResponse> {
        let Self { runtime, client } = self;
        let call = async { within(PATIENCE, client.nodes(v1::NodesRequest {})).await };
        answer("name the nodes of its fleet", runtime.block_on(call))
    }

    /// Has the fleet forget a node that has left for good.
    pub fn forget_node(&mut self, node: u16) -> Result<()> {
        let Self { runtime, client } = self;
        let request = v1::ForgetNodeRequest { node: node.into() };
        let call = async { within(PATIENCE, client.forget_node(request)).await };
        answer("forget a node", runtime.block_on(call)).map(drop)
    }

    /// Which nodes are thought to hold which of these blocks.
    pub fn r#where(&mut self, subject: v1::where_request::Subject) -> Result<v1::WhereResponse> {
        let Self { runtime, client } = self;
        let request = v1::WhereRequest { subject: Some(subject) };
        let call = async { within(PATIENCE, client.r#where(request)).await };
        answer("look into the directory", runtime.block_on(call))
    }

    pub fn drain(&mut self) -> Result<()> {
        let Self { runtime, client } = self;
        let call = async { within(LONG_PATIENCE, client.drain(v1::DrainRequest {})).await };
        answer("drain", runtime.block_on(call)).map(|_| ())
    }
}

type Outcome<T> = Result<Result<T, Status>, Elapsed>;

async fn within<T>(
    patience: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Outcome<T> {
    tokio::time::timeout(patience, call).await
}

fn answer<T>(call: &str, outcome: Outcome<Response<T>>) -> Result<T> {
    match outcome {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(refusal(call, &status)),
        Err(_) => Err(late(call)),
    }
}

fn next<T>(runtime: &Runtime, call: &str, stream: &mut Streaming<T>) -> Result<Option<T>> {
    match runtime.block_on(async { within(LONG_PATIENCE, stream.message()).await }) {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(status)) => Err(refusal(call, &status)),
        Err(_) => Err(late(call)),
    }
}

fn refusal(call: &str, status: &Status) -> anyhow::Error {
    if status.code() == Code::Unavailable {
        return anyhow!("sidecar went away before it could {call}");
    }
    anyhow!("sidecar refuses to {call}: {}", status.message())
}

fn late(call: &str) -> anyhow::Error {
    anyhow!("sidecar gave no answer when asked to {call}: see its log")
}
