//! The coordinator's rules, one by one, by example.

mod bounds;
mod checks;
mod desired_store;
mod desk;
mod dry_run;
mod failures;
mod fetching;
mod joining;
mod leases;
mod lending;
mod order;
mod placement;
mod presence;
mod quorum;
mod refusals;
mod sessions;
mod sharing;
mod speculation;
