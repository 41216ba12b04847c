//! The audit log: pages by index, limits by age and size, a chain that survives both.

#![expect(clippy::unwrap_used, reason = "a test that is surprised should end there")]

use kohakuriver_store::{AuditFilter, AuditLimits, NewAudit, Store, Verified};
use proptest::prelude::*;
use sqlx::{Connection, Row, SqliteConnection};

const NEVER: AuditLimits = AuditLimits { max_age_ms: i64::MAX / 4, max_bytes: i64::MAX };

async fn store() -> (Store, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Store::open(&dir.path().join("host.db")).await.unwrap(), dir)
}

fn entry(at_ms: i64, actor: &str, action: &str, object: &str) -> NewAudit {
    NewAudit {
        at_ms,
        actor: actor.to_owned(),
        actor_id: None,
        address: "192.0.2.1".to_owned(),
        action: action.to_owned(),
        object: object.to_owned(),
        result: "ok".to_owned(),
        detail: String::new(),
    }
}

async fn filled(count: i64) -> (Store, tempfile::TempDir) {
    let (store, dir) = store().await;
    let entries: Vec<_> = (1..=count).map(|n| entry(n, "ann", "vps.stop", "vps 1")).collect();
    store.append_audit(&entries).await.unwrap();
    (store, dir)
}

async fn raw(dir: &tempfile::TempDir) -> SqliteConnection {
    let path = dir.path().join("host.db");
    SqliteConnection::connect(path.to_str().unwrap()).await.unwrap()
}

#[tokio::test]
async fn pruned_log_stays_verifiable_and_records_removal() {
    let (store, _dir) = filled(30).await;
    let last = store.audit_after(9).await.unwrap()[0].clone();
    assert_eq!(last.seq, 10);
    let limits = AuditLimits { max_age_ms: 100, ..NEVER };
    assert_eq!(store.prune_audit(limits, 111).await.unwrap(), 10);
    let rows = store.audit_after(0).await.unwrap();
    assert_eq!((rows[0].seq, rows.len()), (11, 21));
    let note = &rows[20].entry;
    assert_eq!(note.action, "audit.prune");
    assert!(note.detail.contains(&last.hash), "{note:?}");
    let verified = store.verify_audit().await.unwrap();
    assert!(matches!(verified, Verified::Intact { entries: 21, pruned: 10, .. }), "{verified:?}");
    // Again, until only the removals themselves are left.
    store.prune_audit(limits, 100_000).await.unwrap();
    store.append_audit(&[entry(100_001, "ann", "vps.stop", "vps 1")]).await.unwrap();
    let verified = store.verify_audit().await.unwrap();
    assert!(matches!(verified, Verified::Intact { entries: 2, pruned: 31, .. }), "{verified:?}");
}

#[tokio::test]
async fn size_limit_keeps_the_newest_entries() {
    let (store, _dir) = filled(3000).await;
    let before = store.audit_bytes().await.unwrap();
    let limits = AuditLimits { max_bytes: before / 2, ..NEVER };
    let removed = store.prune_audit(limits, 3001).await.unwrap();
    assert!((1400..1600).contains(&removed), "{removed}");
    let after = store.audit_bytes().await.unwrap();
    assert!(after <= before / 2 + 400, "{after} of {before}");
    assert_eq!(store.prune_audit(NEVER, 3002).await.unwrap(), 0);
    assert!(matches!(store.verify_audit().await.unwrap(), Verified::Intact { .. }));
}

#[tokio::test]
async fn manual_removal_of_oldest_entries_is_detected() {
    let (store, dir) = filled(30).await;
    let hash = store.audit_after(9).await.unwrap()[0].hash.clone();
    let mut raw = raw(&dir).await;
    sqlx::query("DELETE FROM audit WHERE seq <= 10").execute(&mut raw).await.unwrap();
    assert_eq!(store.verify_audit().await.unwrap(), Verified::Broken { seq: 11 });
    sqlx::query("UPDATE audit_state SET pruned_seq = 10, pruned_hash = $1")
        .bind(hash)
        .execute(&mut raw)
        .await
        .unwrap();
    assert_eq!(store.verify_audit().await.unwrap(), Verified::Broken { seq: 11 });
}

#[tokio::test]
async fn every_filter_uses_an_index() {
    let (store, dir) = filled(1).await;
    drop(store);
    let mut raw = raw(&dir).await;
    for (given, index) in [
        ("action = 'a'", "audit_by_action"),
        ("action = 'a' AND actor = 'b'", "audit_by_actor"),
        ("action = 'a' AND object = 'c'", "audit_by_object"),
    ] {
        for (bound, order) in [("seq > 0 AND seq < 9", "seq DESC"), ("seq > 7 AND seq < 9", "seq")]
        {
            let sql = format!(
                "EXPLAIN QUERY PLAN SELECT seq FROM audit WHERE {given} AND {bound}
                 ORDER BY {order} LIMIT 100"
            );
            let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&mut raw).await.unwrap();
            let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
            let plan = plan.join("; ");
            assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{given}: {plan}");
        }
    }
}

/// The expected page, by a scan of every entry.
fn expected(all: &[NewAudit], filter: &AuditFilter) -> Vec<i64> {
    let matches = |seq: i64, entry: &NewAudit| {
        let of = |asked: &Option<String>, value: &str| asked.as_deref().is_none_or(|a| a == value);
        of(&filter.actor, &entry.actor)
            && of(&filter.object, &entry.object)
            && filter.action.as_deref().is_none_or(|asked| {
                entry.action == asked || entry.action.starts_with(&format!("{asked}."))
            })
            && filter.before.is_none_or(|before| seq < before)
            && filter.after.is_none_or(|after| seq > after)
            && filter.since_ms.is_none_or(|since| entry.at_ms >= since)
    };
    let mut found: Vec<i64> =
        (1..).zip(all).filter(|(seq, entry)| matches(*seq, entry)).map(|(seq, _)| seq).collect();
    if filter.after.is_none() {
        found.reverse();
    }
    found.truncate(filter.limit as usize);
    found
}

fn filters() -> impl Strategy<Value = AuditFilter> {
    let one_of = |values: &'static [&'static str]| {
        proptest::option::of(proptest::sample::select(values).prop_map(str::to_owned))
    };
    let number = || proptest::option::of(0..45_i64);
    let texts = (
        one_of(&["ann", "bob", "nobody"]),
        one_of(&["vps", "vps.stop", "auth.token", "auth", "x"]),
        one_of(&["vps 1", "vps 2", "vps 9"]),
    );
    (texts, number(), number(), number(), 1..20_u32).prop_map(
        |((actor, action, object), before, after, since_ms, limit)| AuditFilter {
            actor,
            action,
            object,
            before,
            after,
            since_ms,
            limit,
        },
    )
}

fn entries() -> impl Strategy<Value = Vec<NewAudit>> {
    let one = (
        proptest::sample::select(&["ann", "bob", "'; --"][..]),
        proptest::sample::select(&["vps.stop", "vps.share", "auth.token.create", "vpsx"][..]),
        proptest::sample::select(&["vps 1", "vps 2"][..]),
    );
    proptest::collection::vec(one, 1..40).prop_map(|all| {
        (1..)
            .zip(all)
            .map(|(at, (actor, action, object))| entry(at, actor, action, object))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn page_by_index_equals_full_scan(
        all in entries(),
        filters in proptest::collection::vec(filters(), 8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (store, _dir) = store().await;
            store.append_audit(&all).await.unwrap();
            for filter in filters {
                let found = store.list_audit(&filter).await.unwrap();
                let found: Vec<i64> = found.iter().map(|row| row.seq).collect();
                prop_assert_eq!(found, expected(&all, &filter), "{:?}", filter);
            }
            Ok(())
        })?;
    }
}
