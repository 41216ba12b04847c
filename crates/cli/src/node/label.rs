//! `kohakuriver node label`

use std::collections::BTreeMap;

use clap_complete::ArgValueCandidates;
use kohakuriver_api::LabelChanges;
use kohakuriver_model::NodeName;

use super::status::{labels, with_list_hint};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::vps::vocabulary;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
`kohakuriver vps create --node-label KEY=VALUE` places a VPS on a node with that label.

Examples:
  kohakuriver node label gpu-01 disk=ssd room=b2
  kohakuriver node label gpu-01 room-                 removes it")]
pub struct LabelArgs {
    /// The node's name.
    #[arg(add = ArgValueCandidates::new(complete::nodes))]
    node: NodeName,
    /// KEY=VALUE sets a label, KEY- removes it.
    #[arg(required = true, value_name = "CHANGE", value_parser = change)]
    changes: Vec<Change>,
}

/// A label and its new value; `None` removes it.
type Change = (String, Option<String>);

pub async fn run(context: &Context, args: &LabelArgs) -> Result<(), CommandError> {
    let name = args.node.as_str();
    let changes = LabelChanges { labels: collected(&args.changes)? };
    let node = context.api.label_node(name, &changes).await.map_err(with_list_hint)?;
    if context.out.json {
        context.out.json(&node);
    } else if node.labels.is_empty() {
        context.out.line(format!("node {name} has no labels"));
    } else {
        context.out.line(format!("node {name}: {}", labels(&node)));
    }
    Ok(())
}

fn collected(changes: &[Change]) -> Result<BTreeMap<String, Option<String>>, CommandError> {
    let mut all = BTreeMap::new();
    for (key, value) in changes {
        if all.insert(key.clone(), value.clone()).is_some() {
            return Err(CommandError::usage(format!("label '{key}' is given twice"))
                .hint("give each label once"));
        }
    }
    Ok(all)
}

fn change(text: &str) -> Result<Change, String> {
    if text.contains('=') {
        return vocabulary::label(text).map(|(key, value)| (key, Some(value)));
    }
    match text.strip_suffix('-') {
        Some(key) if !key.is_empty() => Ok((key.to_owned(), None)),
        Some(_) | None => Err("write KEY=VALUE to set a label or KEY- to remove it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_hyphen_removes_and_equals_sign_sets() {
        let set = |key: &str, value: &str| Ok((key.to_owned(), Some(value.to_owned())));
        assert_eq!(change("disk=ssd"), set("disk", "ssd"));
        assert_eq!(change("a=b-"), set("a", "b-"));
        assert_eq!(change("a="), set("a", ""));
        assert_eq!(change("room-"), Ok(("room".to_owned(), None)));
        for bad in ["", "-", "room", "=x"] {
            assert!(change(bad).is_err(), "{bad:?}");
        }
        let twice = [change("a=1").unwrap(), change("a-").unwrap()];
        assert_eq!(collected(&twice).unwrap_err().exit_code(), 2);
    }
}
