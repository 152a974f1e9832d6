//! The checker against correct histories, and against each kind of fault.

mod day;
mod faults;
mod model;
mod random;
