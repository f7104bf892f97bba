//! Links between nodes: identities, one-token enrolment, TLS 1.3 with pinned keys, frames both ways. Plain threads.
//!
//! A link is either TCP with TLS 1.3, both ends showing their own certificate, or a Unix socket on one host whose other end
//! must be the same user or root. Nothing listens on TCP without an identity (design: "beyond the host nothing listens
//! without keys").

pub mod addr;
pub mod enrol;
pub mod identity;
pub mod invite;
pub mod link;
pub mod peers;
mod private;
mod reader;
mod sock;
mod text;
mod tls;
mod writer;

pub use addr::Addr;
pub use enrol::{Enrolled, enrol_call, enrol_serve};
pub use identity::{Identity, PeerKey};
pub use invite::{Invites, Token};
pub use link::{Closer, Incoming, Link, Listener, Peer, Purpose, dial};
pub use peers::{PeerEntry, PeerStore};
pub use reader::FrameReader;
pub use writer::FrameWriter;

#[cfg(test)]
mod link_tests;
#[cfg(test)]
mod trust_tests;
