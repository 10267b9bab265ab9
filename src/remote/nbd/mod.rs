//! The NBD protocol, fixed newstyle: exports of servers as block devices, and a block device as an
//! export.
//!
//! | module | responsibility |
//! |---|---|
//! | [`wire`] | numbers and pure functions between bytes and values |
//! | [`stream`] | a connected socket |
//! | [`export`] | what a server offers: a device, its name, its answers to block status |
//! | [`client`] | an export as a block device |
//! | [`negotiate`] | the client's side of the negotiation |
//! | [`channel`] | the client's connection, plain or encrypted |
//! | [`handshake`] | the server's side of the negotiation |
//! | [`connection`] | the server's side of the transmission phase |
//! | [`pace`] | which thread does a request |
//! | [`server`] | sockets that are listened on, clients, their limits and their end |
//!
//! Specification: "The NBD protocol", `doc/proto.md` of NetworkBlockDevice/nbd.

pub mod channel;
pub mod client;
pub mod connection;
pub mod export;
pub mod handshake;
pub mod negotiate;
pub mod pace;
pub mod server;
pub mod stream;
pub mod wire;
