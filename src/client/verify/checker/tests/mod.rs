//! The checker against histories that are right, and against each fault.

mod day;
mod faults;
mod model;
mod random;
