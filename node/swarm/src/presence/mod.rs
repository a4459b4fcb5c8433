//! Who has which path.
//!
//! Two pure states: the [`Advertisement`] is what this node says of itself and who has been told; the
//! [`PresenceTable`] is what others have left here. Neither has a socket or a clock.

mod advertisement;
mod allowance;
mod table;

pub use advertisement::{Advertisement, OwnCell};
pub use allowance::Allowance;
pub use table::{Offer, PresenceTable};
