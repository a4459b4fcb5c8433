//! Real builds in real sandboxes. Where the machine does not allow them, the tests say so and pass.

mod builds;
mod channel;
mod ends;
mod floods;
mod hostile;
mod keys;
mod network;
mod place;
mod repeated;
mod stage;
mod unprivileged;
