//! Who has which path.
//!
//! Pure states: the [`Advertisement`] is what this node says of itself and who has been told; the [`PresenceTable`] is
//! what others have left here, within their [`Allowance`]; [`Keepers`] is who keeps what. None has a socket or a clock.

mod advertisement;
mod allowance;
mod claim;
mod keepers;
mod table;

pub use advertisement::{Advertisement, OwnCell};
pub use allowance::Allowance;
pub use claim::claimed;
pub use keepers::Keepers;
pub use table::{Offer, PresenceTable, WantedCell};
