//! Bounds how fast one actor fills the audit log; only the times of single entries are lost.
//!
//! Within a minute an actor's first entries are written as they are. Further ones are counted, and
//! written at the end of that minute as one entry for each action, object and result:
//! `412 times within 60 s`. An act stays visible whatever it is hidden among, while a loop of
//! requests costs a row a second rather than thousands.
//!
//! ```text
//!  entry ─> fewer than SINGLE this minute? ─ yes ─> written now
//!                       └ no ─> counted by (action, object, result) ─ minute over ─> one entry each
//!                                └ more than GROUPS of these: by (action, result)
//! ```

use std::collections::{BTreeMap, HashMap};

use kohakuriver_store::NewAudit;

const WINDOW_MS: i64 = 60_000;
/// The number of an actor's entries that are written singly each minute. Interactive work needs a
/// tenth of it.
const SINGLE: u32 = 120;
/// The number of groups in which an actor's further entries are counted.
const GROUPS: usize = 100;

/// The recent entries of every actor.
#[derive(Debug, Default)]
pub struct Fold {
    actors: HashMap<String, Window>,
}

#[derive(Debug)]
struct Window {
    from_ms: i64,
    single: u32,
    /// By action, object and result; the object is empty where there were too many.
    counted: BTreeMap<(String, String, String), Counted>,
}

#[derive(Debug)]
struct Counted {
    times: u64,
    last: NewAudit,
}

impl Fold {
    /// Returns the entry if it is to be written now, and counts it otherwise.
    pub fn admit(&mut self, entry: NewAudit) -> Option<NewAudit> {
        let window = self.actors.entry(entry.actor.clone()).or_insert_with(|| Window {
            from_ms: entry.at_ms,
            single: 0,
            counted: BTreeMap::new(),
        });
        if window.single < SINGLE {
            window.single += 1;
            return Some(entry);
        }
        let key = |object: &str| (entry.action.clone(), object.to_owned(), entry.result.clone());
        let mut at = key(&entry.object);
        if window.counted.len() >= GROUPS && !window.counted.contains_key(&at) {
            at = key("");
        }
        let counted =
            window.counted.entry(at).or_insert_with(|| Counted { times: 0, last: entry.clone() });
        counted.times += 1;
        counted.last = entry;
        None
    }

    /// Ends the windows that are over, and returns the entries counted in them. A clock that was
    /// set back ends them too.
    pub fn due(&mut self, now_ms: i64) -> Vec<NewAudit> {
        let is_over = |window: &Window| !(0..WINDOW_MS).contains(&(now_ms - window.from_ms));
        let mut due = Vec::new();
        for window in self.actors.values_mut().filter(|window| is_over(window)) {
            take(window, now_ms, &mut due);
        }
        self.actors.retain(|_, window| !is_over(window));
        due
    }

    /// Returns everything that was counted so far, for a host that stops.
    pub fn rest(&mut self, now_ms: i64) -> Vec<NewAudit> {
        let mut due = Vec::new();
        for window in self.actors.values_mut() {
            take(window, now_ms, &mut due);
        }
        self.actors.clear();
        due
    }
}

fn take(window: &mut Window, now_ms: i64, due: &mut Vec<NewAudit>) {
    let seconds = (now_ms - window.from_ms).max(0) / 1000;
    for ((_, object, _), counted) in std::mem::take(&mut window.counted) {
        let Counted { times, last } = counted;
        let object = if object.is_empty() && !last.object.is_empty() {
            "various".to_owned()
        } else {
            object
        };
        let detail = match times {
            1 => last.detail,
            times => format!("{times} times within {seconds} s"),
        };
        due.push(NewAudit { at_ms: now_ms, object, detail, ..last });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(at_ms: i64, actor: &str, object: &str) -> NewAudit {
        NewAudit {
            at_ms,
            actor: actor.to_owned(),
            actor_id: None,
            address: String::new(),
            action: "node.drain".to_owned(),
            object: object.to_owned(),
            result: "role".to_owned(),
            detail: String::new(),
        }
    }

    #[test]
    fn loop_of_one_actor_costs_a_bounded_number_of_rows() {
        let mut fold = Fold::default();
        let mut written = Vec::new();
        for n in 0..100_000 {
            written.extend(fold.admit(entry(n / 2, "mallory", &format!("name {n}"))));
        }
        written.extend(fold.due(60_000));
        assert!(written.len() <= SINGLE as usize + GROUPS + 1, "{}", written.len());
        let last = written.iter().find(|entry| entry.object == "various").unwrap();
        assert!(last.detail.contains("times within 60 s"), "{last:?}");
        assert!(fold.actors.is_empty());
    }

    #[test]
    fn rare_act_among_many_keeps_its_object() {
        let mut fold = Fold::default();
        for _ in 0..1000 {
            fold.admit(entry(5, "mallory", "vps 1"));
        }
        assert!(fold.admit(entry(6, "mallory", "vps 2")).is_none());
        assert!(fold.admit(entry(6, "ann", "vps 3")).is_some(), "others are not held back");
        let due = fold.due(60_005);
        assert!(due.iter().any(|entry| entry.object == "vps 2" && entry.detail.is_empty()));
    }

    #[test]
    fn clock_set_back_ends_the_window() {
        let mut fold = Fold::default();
        for _ in 0..200 {
            fold.admit(entry(1_000_000, "ann", "vps 1"));
        }
        assert_eq!(fold.due(10).len(), 1);
        assert!(fold.admit(entry(11, "ann", "vps 1")).is_some());
    }

    proptest! {
        #[test]
        fn no_entry_is_lost_in_counting(steps in proptest::collection::vec((0..3_usize, 0..150_usize, 0..4000_i64), 1..600)) {
            let (mut fold, mut now_ms, mut seen) = (Fold::default(), 0, 0);
            let times = |entry: &NewAudit| {
                entry.detail.split(' ').next().and_then(|n| n.parse::<usize>().ok()).unwrap_or(1)
            };
            let mut made = 0;
            for (actor, object, passed) in steps {
                now_ms += passed;
                for _ in 0..3 {
                    let new = entry(now_ms, ["a", "b", "c"][actor], &format!("vps {object}"));
                    made += 1;
                    seen += usize::from(fold.admit(new).is_some());
                }
                seen += fold.due(now_ms).iter().map(times).sum::<usize>();
            }
            seen += fold.rest(now_ms).iter().map(times).sum::<usize>();
            prop_assert_eq!(seen, made);
        }
    }
}
