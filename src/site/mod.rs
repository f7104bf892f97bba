//! Procedures over whole sites: the test bed and the demonstration.

pub mod adopt;
pub mod demo;
mod demo_data;
pub mod keys;
pub mod lab;
pub mod lab_files;
mod lab_wait;
pub mod procedure;
pub mod process;
pub mod text;
