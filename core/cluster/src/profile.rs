//! How soon a node is taken for dead.

/// How soon a node is taken for dead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// For a network of one place: a killed node is seen within 7 s.
    #[default]
    Lan,
    /// For machines that always answer at once: within 3 s. More often somebody is taken for dead who lives.
    Fast,
}

impl Profile {
    /// By its name in the settings.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "lan" => Some(Self::Lan),
            "fast" => Some(Self::Fast),
            _ => None,
        }
    }
}
