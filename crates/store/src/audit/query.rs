//! Finds a page of the audit log by index, for every filter.
//!
//! Each index ends with the entry's number, so the newest entries of *one* actor and action, or
//! object and action, are read in order and without sorting. A filter that leaves the action open
//! is therefore asked once for each action there is (some seventy), and the results are merged:
//! the cost follows the length of the page, not the length of the log.

use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::{AuditRow, read_audit};
use crate::{Store, StoreError};

/// The filter of a query. Empty fields match everything.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    pub actor: Option<String>,
    /// The whole action, or its beginning up to a dot.
    pub action: Option<String>,
    pub object: Option<String>,
    /// Only entries before this number.
    pub before: Option<i64>,
    /// Only entries after this number, oldest first.
    pub after: Option<i64>,
    pub since_ms: Option<i64>,
    pub limit: u32,
}

impl Store {
    /// Returns a page: newest first, unless `after` is given.
    pub async fn list_audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
        let mut view = self.readers.begin().await?;
        let Some(range) = Range::of(&mut view, filter).await? else { return Ok(Vec::new()) };
        let mut query = QueryBuilder::new("SELECT * FROM audit WHERE ");
        if filter.actor.is_none() && filter.object.is_none() && filter.action.is_none() {
            range.bound(&mut query);
        } else {
            let actions = actions(&mut view, filter).await?;
            if actions.is_empty() {
                return Ok(Vec::new());
            }
            query.push("seq IN (");
            for (at, action) in actions.iter().enumerate() {
                query.push(if at == 0 {
                    "SELECT seq FROM ("
                } else {
                    " UNION ALL SELECT seq FROM ("
                });
                query.push("SELECT seq FROM audit WHERE action = ").push_bind(action);
                for (column, value) in
                    [(" AND object = ", &filter.object), (" AND actor = ", &filter.actor)]
                {
                    if let Some(value) = value {
                        query.push(column).push_bind(value);
                    }
                }
                query.push(" AND ");
                range.bound(&mut query);
                range.order(&mut query);
                query.push(")");
            }
            query.push(")");
        }
        range.order(&mut query);
        let rows = query.build().fetch_all(&mut *view).await?;
        rows.iter().map(read_audit).collect()
    }
}

/// The numbers of the candidate entries, and their order.
struct Range {
    above: i64,
    below: i64,
    order: &'static str,
    limit: i64,
}

impl Range {
    /// Returns `None` where no entry is recent enough.
    async fn of(
        view: &mut SqliteConnection,
        filter: &AuditFilter,
    ) -> Result<Option<Self>, StoreError> {
        let mut above = filter.after.unwrap_or(0);
        if let Some(since_ms) = filter.since_ms {
            // Entries are in the order of time, except for clocks that were set back: entries
            // written under a clock ahead of time are not searched for.
            let sql = "SELECT seq FROM audit WHERE at_ms >= $1 ORDER BY at_ms LIMIT 1";
            let first = sqlx::query(sql).bind(since_ms).fetch_optional(view).await?;
            let Some(first) = first else { return Ok(None) };
            above = above.max(first.try_get::<i64, _>("seq")? - 1);
        }
        Ok(Some(Self {
            above,
            below: filter.before.unwrap_or(i64::MAX),
            order: if filter.after.is_some() {
                " ORDER BY seq LIMIT "
            } else {
                " ORDER BY seq DESC LIMIT "
            },
            limit: i64::from(filter.limit),
        }))
    }

    fn bound(&self, query: &mut QueryBuilder<Sqlite>) {
        query.push("seq > ").push_bind(self.above).push(" AND seq < ").push_bind(self.below);
    }

    fn order(&self, query: &mut QueryBuilder<Sqlite>) {
        query.push(self.order).push_bind(self.limit);
    }
}

/// Lists the actions of the filter's object or actor that match the filter, by jumping from each to
/// the next in the index.
async fn actions(
    view: &mut SqliteConnection,
    filter: &AuditFilter,
) -> Result<Vec<String>, StoreError> {
    let mut query =
        QueryBuilder::new("WITH RECURSIVE found (action) AS (SELECT min(action) FROM audit WHERE ");
    of_whom(&mut query, filter);
    query.push(" UNION ALL SELECT (SELECT min(action) FROM audit WHERE ");
    of_whom(&mut query, filter);
    query.push(" AND action > found.action) FROM found WHERE found.action IS NOT NULL)");
    query.push(" SELECT action FROM found WHERE action IS NOT NULL");
    let rows = query.build().fetch_all(view).await?;
    let mut actions = Vec::new();
    for row in rows {
        let action: String = row.try_get("action")?;
        if filter.action.as_deref().is_none_or(|asked| is_of(&action, asked)) {
            actions.push(action);
        }
    }
    Ok(actions)
}

/// Queries one index: an object has few actors, so the object comes first.
fn of_whom(query: &mut QueryBuilder<Sqlite>, filter: &AuditFilter) {
    match (&filter.object, &filter.actor) {
        (Some(object), _) => query.push("object = ").push_bind(object.clone()),
        (None, Some(actor)) => query.push("actor = ").push_bind(actor.clone()),
        (None, None) => query.push("1"),
    };
}

fn is_of(action: &str, asked: &str) -> bool {
    action.strip_prefix(asked).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::is_of;

    #[test]
    fn an_action_is_of_its_own_beginnings_only() {
        for (action, asked, of) in [
            ("vps.stop", "vps", true),
            ("vps.stop", "vps.stop", true),
            ("vps.stop", "vps.st", false),
            ("vps.stop", "vp", false),
            ("vps", "vps.stop", false),
        ] {
            assert_eq!(is_of(action, asked), of, "{action} {asked}");
        }
    }
}
