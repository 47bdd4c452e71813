//! What every export has to do, whatever it is made of.
