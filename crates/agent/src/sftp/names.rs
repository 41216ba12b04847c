//! Names of users and groups for people to read, from the image's own files, read once and only if asked for.

use std::collections::HashMap;

use crate::passwd;

#[derive(Debug, Default)]
pub(super) struct Names {
    known: Option<(HashMap<u32, String>, HashMap<u32, String>)>,
}

impl Names {
    fn known(&mut self) -> &(HashMap<u32, String>, HashMap<u32, String>) {
        self.known.get_or_insert_with(|| (passwd::user_names(), passwd::group_names()))
    }

    /// The user's name; empty where it has none.
    pub fn user(&mut self, id: u32) -> &str {
        self.known().0.get(&id).map_or("", String::as_str)
    }

    /// The group's name; empty where it has none.
    pub fn group(&mut self, id: u32) -> &str {
        self.known().1.get(&id).map_or("", String::as_str)
    }
}
