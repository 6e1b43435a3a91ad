//! Checkpoint folders: the golden ones, the published shapes, and broken ones.
#[path = "checkpoint/allocations.rs"]
mod allocations;
#[path = "checkpoint/broken.rs"]
mod broken;
#[path = "checkpoint/config.rs"]
mod config;
#[path = "checkpoint/folder.rs"]
mod folder;
#[path = "checkpoint/golden.rs"]
mod golden;
#[path = "checkpoint/seeds.rs"]
mod seeds;
#[path = "checkpoint/shapes.rs"]
mod shapes;
