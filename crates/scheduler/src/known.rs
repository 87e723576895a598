//! The standings of keys that are here, and of some that were.

use std::collections::BTreeMap;

use crate::standing::Standing;

/// Keys that are away and whose standing is kept, at most; past it those go that left the
/// longest ago, and come back as the shell knows them.
const AWAY_MAX: usize = 100_000;

/// Standings by key. As many as there are connections and [`AWAY_MAX`] at most.
#[derive(Debug, Default)]
pub(crate) struct Known {
    keys: BTreeMap<String, Entry>,
    /// Keys that are away, in the order in which they left.
    away: BTreeMap<u64, String>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    standing: Standing,
    /// Where it is in [`Known::away`], unless it is here.
    away: Option<u64>,
}

impl Known {
    pub fn get(&self, key: &str) -> Option<&Standing> {
        self.keys.get(key).map(|entry| &entry.standing)
    }

    /// Keeps a standing: in the place of the old one, or as that of a key that is away.
    pub fn set(&mut self, key: &str, standing: Standing) {
        match self.keys.get_mut(key) {
            Some(entry) => entry.standing = standing,
            None => {
                self.keys.insert(key.to_owned(), Entry { standing, away: None });
                self.leaves(key);
            }
        }
    }

    /// A key is here from now on, with the standing that it is known by.
    pub fn comes(&mut self, key: &str, standing: Standing) {
        let old = self.keys.insert(key.to_owned(), Entry { standing, away: None });
        if let Some(away) = old.and_then(|entry| entry.away) {
            self.away.remove(&away);
        }
    }

    /// A key is here no longer: it is forgotten once enough others have left after it.
    pub fn leaves(&mut self, key: &str) {
        let Some(entry) = self.keys.get_mut(key).filter(|entry| entry.away.is_none()) else {
            return;
        };
        entry.away = Some(self.next);
        self.away.insert(self.next, key.to_owned());
        self.next += 1;
        if self.away.len() > AWAY_MAX
            && let Some((_, oldest)) = self.away.pop_first()
        {
            self.keys.remove(&oldest);
        }
    }

    /// Keys that are here.
    pub fn here(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().filter(|(_, entry)| entry.away.is_none()).map(|(key, _)| key.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_those_that_are_away_the_oldest_goes_and_whoever_is_here_stays() {
        let mut known = Known::default();
        let seen = |n| Standing { disagreements: n, ..Standing::default() };
        known.comes("here", seen(1));
        known.comes("back", seen(2));
        known.leaves("back");
        known.set("gone", Standing { banned: true, ..seen(3) });
        known.comes("back", seen(2));
        for n in 0..AWAY_MAX {
            assert!(known.get("gone").is_some(), "after {n}");
            let key = n.to_string();
            known.comes(&key, Standing::default());
            known.leaves(&key);
        }
        assert_eq!(known.get("gone"), None);
        assert_eq!(known.get("0"), Some(&Standing::default()));
        assert_eq!((known.get("here"), known.get("back")), (Some(&seen(1)), Some(&seen(2))));
        assert_eq!(known.here().collect::<Vec<_>>(), ["back", "here"]);
        assert_eq!((known.keys.len(), known.away.len()), (AWAY_MAX + 2, AWAY_MAX));
    }
}
