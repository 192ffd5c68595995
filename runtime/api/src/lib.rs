//! `apex-api`: what apexd is asked and answers, over gRPC and REST, and the client's side of it.
//!
//! Input: requests over a unix socket. Output: calls of a [`Service`], which is the daemon's, with who asked ([`Peer`], from the kernel). This crate decides
//! nothing and touches no sandbox.
#![forbid(unsafe_code)]

mod bodies;
pub mod client;
mod codec;
mod count;
mod error;
mod grpc;
mod mail;
mod openapi;
mod peer;
mod rest;
mod routes;
mod seats;
pub mod server;
mod service;

/// The messages, as `proto/apex/v1/apex.proto` explains them.
#[allow(missing_docs, clippy::all, reason = "generated from the proto file, where the comments are")]
pub mod v1 {
    tonic::include_proto!("apex.v1");
}

pub use error::{Error, Kind};
pub use openapi::document as openapi;
pub use service::{Peer, Service, Streamed};
