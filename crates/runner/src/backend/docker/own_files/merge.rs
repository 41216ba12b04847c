//! Merges a file that the runner would write differently than last time, and that was edited since.
//!
//! Lines of ours that changed are exchanged where they still stand; everything else is the editor's. A
//! line of ours that the editor has removed or changed stays so.

/// `before`: what we would have written last time. `now`: what the file has. `after`: what we would write
/// this time.
pub fn merge(before: &str, now: &str, after: &str) -> String {
    if now == before || now == after {
        return after.to_owned();
    }
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let gone: Vec<&str> = old.iter().copied().filter(|line| !new.contains(line)).collect();
    let added: Vec<&str> = new.iter().copied().filter(|line| !old.contains(line)).collect();
    let current: Vec<&str> = now.lines().collect();
    let added: Vec<&str> = added.into_iter().filter(|line| !current.contains(line)).collect();
    if added.is_empty() && !current.iter().any(|line| gone.contains(line)) {
        return now.to_owned();
    }
    // Where ours were, or behind the last of ours that is left.
    let place = current.iter().position(|line| gone.contains(line)).or_else(|| {
        let is_addition = gone.is_empty();
        let last = current.iter().rposition(|line| !line.trim().is_empty() && old.contains(line));
        last.filter(|_| is_addition).map(|at| at + 1)
    });
    let Some(place) = place else { return now.to_owned() };
    let mut merged = Vec::with_capacity(current.len() + added.len());
    for (at, line) in current.iter().enumerate() {
        if at == place {
            merged.extend(&added);
        }
        if !gone.contains(line) {
            merged.push(line);
        }
    }
    if place == current.len() {
        merged.extend(&added);
    }
    merged.into_iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn edits_stay_and_our_changed_lines_change() {
        let old = "nameserver 10.0.0.1\nsearch lab\n";
        let new = "nameserver 10.0.0.2\nnameserver 10.0.0.3\nsearch lab\n";
        assert_eq!(merge(old, old, new), new);
        let edited = "# mine\nnameserver 10.0.0.1\nsearch lab home\noptions timeout:1\n";
        assert_eq!(
            merge(old, edited, new),
            "# mine\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nsearch lab home\noptions timeout:1\n"
        );
        let own = "nameserver 9.9.9.9\n";
        assert_eq!(merge(old, own, new), own, "who replaced ours keeps what replaced it");
        let more = "nameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch lab\n";
        let extra = "nameserver 10.0.0.1\nsearch lab\n10 x\n";
        assert_eq!(
            merge(old, extra, more),
            "nameserver 10.0.0.1\nsearch lab\nnameserver 10.0.0.2\n10 x\n"
        );
        assert_eq!(merge("a\n", "b\n", "c\n"), "b\n");
    }

    fn text() -> impl Strategy<Value = String> {
        proptest::collection::vec("[a-d]{1,2}", 0..6)
            .prop_map(|lines| lines.into_iter().map(|line| line + "\n").collect())
    }

    proptest! {
        #[test]
        fn lines_of_others_are_kept_in_order(before in text(), now in text(), after in text()) {
            let merged = merge(&before, &now, &after);
            let ours = |line: &&str| before.lines().chain(after.lines()).any(|known| known == *line);
            let foreign = |text: &str| -> Vec<String> {
                text.lines().filter(|line| !ours(line)).map(ToOwned::to_owned).collect()
            };
            if now != before {
                prop_assert_eq!(foreign(&merged), foreign(&now));
            }
        }

        #[test]
        fn merging_again_changes_nothing(before in text(), now in text(), after in text()) {
            // After a crash between the file and the note of what we would have written.
            let once = merge(&before, &now, &after);
            prop_assert_eq!(&merge(&before, &once, &after), &once);
            prop_assert_eq!(merge(&after, &once, &after), once);
        }
    }
}
