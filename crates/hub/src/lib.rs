//! Fetches models from the Hugging Face Hub and from ModelScope into the caches that their own clients use, so that what
//! Python fetched is found and the other way round.
//!
//! ```text
//! hf:OWNER/NAME[/FILE.gguf][@REVISION]  ──▶ cached? ──▶ its path
//! ms:OWNER/NAME[/FILE.gguf][@REVISION]         │
//!                                              ▼
//!                     list ──▶ select ──▶ space? ──▶ fetch each into *.incomplete ──▶ length, hash ──▶ in place
//! ```
//!
//! What a server says is believed only as far as it can be checked: names stay inside the cache, lengths and hashes
//! must be those of the listing, a redirect never leaves https, and the token goes to the endpoint's host alone.
//!
//! Limits: a listing has at most 32 MB and 100 000 files, a name at most 1024 bytes; at most 5 redirects a request.
//! TLS is rustls with ring; the trusted roots are Mozilla's, compiled in, or those in the file that `SSL_CERT_FILE` names.

mod cache;
mod client;
mod download;
mod error;
mod hash;
mod listing;
mod name;
mod pull;
mod select;
mod site;
mod url;

pub use client::Retry;
pub use error::Error;
pub use listing::{RemoteFile, hugging_face_listing, model_scope_listing};
pub use name::{Hub, ModelName};
pub use pull::{Progress, Pulled, PulledFile, cached, locate, pull};
pub use site::Site;
