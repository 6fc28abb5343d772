//! How fast Ferrite is, measured the same way every time.
