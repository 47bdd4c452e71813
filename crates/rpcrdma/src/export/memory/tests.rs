//! Checked by the suite that all exports share, and here where only this one can tell.
