//! Reading bytes nobody vouches for.
//!
//! | module | responsibility |
//! |---|---|
//! | [`bytes`] | bounded access to integers inside a slice |
//! | [`checksum`] | the CRCs disk formats use, with their odd conventions |
//! | [`text`] | names and strings from a guest, made safe for terminals |
//! | [`units`] | conversions that cannot truncate |
//! | [`uuid`] | UUIDs and mixed-endian GUIDs as text |

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod bytes;
pub mod checksum;
pub mod text;
pub mod units;
pub mod uuid;
