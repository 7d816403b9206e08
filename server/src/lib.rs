//! The sidecar: joins store and index, and serves them over gRPC.
