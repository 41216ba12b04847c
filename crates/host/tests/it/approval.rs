//! Requests, approvals, quotas, rules, shares.

use std::time::Duration;

use anyhow::Result;
use kohakuriver_testkit::{FakeRunner, Person, Reaction, TestHost};
use serde_json::{Value, json};

async fn start() -> Result<(TestHost, FakeRunner)> {
    let host = TestHost::start_with(|config| config.auth.enabled = true).await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    Ok((host, runner))
}

async fn create(host: &TestHost, who: &Person, wish: Value) -> Result<(u16, Value)> {
    let answer = host.post_as(who, "/api/vps/create", wish).await?;
    Ok((answer.status, answer.body))
}

#[tokio::test]
async fn users_request_holds_nothing_and_runs_when_approved() -> Result<()> {
    let (host, _runner) = start().await?;
    let alice = host.person("alice", "user").await?;
    let (status, made) = create(&host, &alice, json!({"name": "web", "required_cores": 3})).await?;
    assert_eq!((status, &made["status"]), (200, &json!("pending_approval")), "{made}");
    let id = made["task_id"].as_str().unwrap().to_owned();
    assert_eq!(host.get("/api/nodes/n1").await?.body["available_cores"], 8);
    let inbox = host.get("/api/tasks/pending-approval").await?.body;
    assert_eq!((&inbox[0]["task_id"], &inbox[0]["owner_username"]), (&json!(id), &json!("alice")));
    let seen = host.get_as(&alice, "/api/status/web").await?.body;
    let since = seen["revision"].as_u64().unwrap();
    let approved = host.post(&format!("/api/approve/{id}"), json!({})).await?;
    assert_eq!(approved.status, 200, "{approved:?}");
    let path = format!("/api/status/{id}?since={since}&timeout=5");
    let changed = host.get_as(&alice, &path).await?.body;
    assert_ne!(changed["status"], "pending_approval", "who waits is told");
    let task = host.wait_for(&id, "running").await?;
    assert_eq!(task["approved_by_username"], "root");
    assert_eq!(task["owner_username"], "alice");
    assert_eq!(host.get("/api/nodes/n1").await?.body["available_cores"], 5);
    Ok(())
}

#[tokio::test]
async fn approved_vps_trusts_certificates_for_itself_only() -> Result<()> {
    let (host, runner) = start().await?;
    let alice = host.person("alice", "user").await?;
    let wish = json!({"name": "web", "ssh_key_mode": "none"});
    let (_, made) = create(&host, &alice, wish).await?;
    let id = made["task_id"].as_str().unwrap();
    // Later: a time in the same millisecond would give another id.
    host.advance(Duration::from_secs(60));
    assert_eq!(host.post(&format!("/api/approve/{id}"), json!({})).await?.status, 200);
    host.wait_for(id, "running").await?;
    let order = runner.order(id.parse()?).unwrap();
    let trusted = order.spec.ssh.unwrap().trusted_ca.unwrap();
    assert_eq!(trusted.principal, format!("vps-{id}"));
    assert_eq!(order.intent.generation, 1, "it was told at once");
    Ok(())
}

#[tokio::test]
async fn operators_create_at_once_and_viewers_never() -> Result<()> {
    let (host, _runner) = start().await?;
    let (olga, vera) =
        (host.person("olga", "operator").await?, host.person("vera", "viewer").await?);
    assert_eq!(create(&host, &olga, json!({})).await?.1["status"], "running");
    assert_eq!(create(&host, &vera, json!({})).await?.0, 403);
    Ok(())
}

#[tokio::test]
async fn concurrent_decisions_give_one_result() -> Result<()> {
    let (host, _runner) = start().await?;
    let alice = host.person("alice", "user").await?;
    let (_, made) = create(&host, &alice, json!({"required_cores": 1})).await?;
    let id = made["task_id"].as_str().unwrap();
    let (yes, no) = (format!("/api/approve/{id}"), format!("/api/reject/{id}"));
    let answers = tokio::try_join!(
        host.post(&yes, json!({})),
        host.post(&no, json!({})),
        host.post(&yes, json!({})),
        host.post(&no, json!({})),
    )?;
    let all = [answers.0.status, answers.1.status, answers.2.status, answers.3.status];
    assert_eq!(all.iter().filter(|status| **status == 200).count(), 1, "{all:?}");
    assert!(all.iter().all(|status| matches!(status, 200 | 404 | 409)), "{all:?}");
    let cores = host.get("/api/nodes/n1").await?.body["available_cores"].as_u64();
    assert!(matches!(cores, Some(7 | 8)), "taken once at most");
    Ok(())
}

#[tokio::test]
async fn approval_without_capacity_keeps_request_pending() -> Result<()> {
    let (host, _runner) = start().await?;
    let alice = host.person("alice", "user").await?;
    let (_, made) = create(&host, &alice, json!({"required_cores": 6})).await?;
    assert_eq!(
        host.post("/api/vps/create", json!({"name": "big", "required_cores": 6})).await?.status,
        200
    );
    let path = format!("/api/approve/{}", made["task_id"].as_str().unwrap());
    let refused = host.post(&path, json!({})).await?;
    assert_eq!((refused.status, refused.text("code")), (503, "no_room"));
    assert!(refused.text("detail").contains("6 requested"), "{refused:?}");
    assert_eq!(host.post("/api/vps/stop/big", json!({})).await?.status, 202);
    host.wait_for("big", "stopped").await?;
    assert_eq!(host.post(&path, json!({})).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn rejection_has_reason_and_owner_deletes_it() -> Result<()> {
    let (host, _runner) = start().await?;
    let alice = host.person("alice", "user").await?;
    create(&host, &alice, json!({"name": "web"})).await?;
    let path = "/api/reject/web?reason=too%20large";
    assert_eq!(host.post(path, json!({})).await?.text("reason"), "too large");
    let seen = host.get_as(&alice, "/api/status/web").await?.body;
    assert_eq!(
        (&seen["status"], &seen["rejection_reason"]),
        (&json!("rejected"), &json!("too large"))
    );
    let restart = host.post_as(&alice, "/api/vps/restart/web", json!({})).await?;
    assert_eq!((restart.status, restart.text("code")), (409, "wrong_state"));
    let gone = host.ask(Some(&alice), "DELETE", "/api/vps/web", None).await?;
    assert_eq!(gone.status, 202);
    assert_eq!(host.get_as(&alice, "/api/vps").await?.body, json!([]));
    Ok(())
}

#[tokio::test]
async fn request_can_be_withdrawn_and_expires() -> Result<()> {
    let (host, _runner) = start().await?;
    let alice = host.person("alice", "user").await?;
    create(&host, &alice, json!({"name": "one"})).await?;
    create(&host, &alice, json!({"name": "two"})).await?;
    assert_eq!(host.post_as(&alice, "/api/kill/one", json!({})).await?.status, 202);
    assert_eq!(host.get_as(&alice, "/api/status/one").await?.status, 404);
    host.advance(Duration::from_secs(15 * 24 * 3600));
    let task = host.wait_for("two", "rejected").await?;
    assert!(task["rejection_reason"].as_str().unwrap().contains("14 days"), "{task}");
    Ok(())
}

#[tokio::test]
async fn quota_holds_over_creates_restarts_and_groups() -> Result<()> {
    let (host, _runner) = start().await?;
    let olga = host.person("olga", "operator").await?;
    let user = format!("/api/auth/users/{}", olga.id);
    let quota = json!({"quota": {"cores": 3, "instances": 2}});
    assert_eq!(host.patch(&user, quota).await?.status, 200);
    assert_eq!(create(&host, &olga, json!({"name": "a", "required_cores": 2})).await?.0, 200);
    let (status, body) = create(&host, &olga, json!({"required_cores": 2})).await?;
    assert_eq!((status, &body["code"]), (403, &json!("over_quota")), "{body}");
    let (status, body) = create(&host, &olga, json!({"required_cores": 0})).await?;
    assert!(
        status == 403 && body["detail"].as_str().unwrap().contains("must set a limit"),
        "{body}"
    );
    assert_eq!(host.post_as(&olga, "/api/vps/stop/a", json!({})).await?.status, 202);
    host.wait_for("a", "stopped").await?;
    assert_eq!(create(&host, &olga, json!({"name": "b", "required_cores": 3})).await?.0, 200);
    let refused = host.post_as(&olga, "/api/vps/restart/a", json!({})).await?;
    assert_eq!((refused.status, refused.text("code")), (403, "over_quota"));
    let (_, body) = create(&host, &olga, json!({"required_cores": 1})).await?;
    assert!(body["detail"].as_str().unwrap().contains("2 instances"), "{body}");
    let used = host.get_as(&olga, "/api/auth/quota").await?.body;
    assert_eq!((&used["held"]["cores"], &used["held"]["instances"]), (&json!(3), &json!(2)));
    Ok(())
}

#[tokio::test]
async fn group_rule_approves_small_requests_within_group_quota() -> Result<()> {
    let (host, _runner) = start().await?;
    let (alice, bob) = (host.person("alice", "user").await?, host.person("bob", "user").await?);
    let group =
        host.post("/api/auth/groups", json!({"name": "students"})).await?.body["id"].clone();
    for person in [&alice, &bob] {
        let path = format!("/api/auth/groups/{group}/members/{}", person.id);
        assert_eq!(host.ask(None, "PUT", &path, None).await?.status, 401);
        assert_eq!(host.put(&path).await?.status, 200);
    }
    let rule = json!({"auto_approve": {"cores": 2}, "quota": {"cores": 3}});
    assert_eq!(host.patch(&format!("/api/auth/groups/{group}"), rule).await?.status, 200);
    let (_, made) = create(&host, &alice, json!({"name": "small", "required_cores": 2})).await?;
    assert_eq!(made["status"], "running", "{made}");
    assert_eq!(made["task"]["approved_by_username"], "rule of group students");
    let (_, made) = create(&host, &alice, json!({"name": "large", "required_cores": 3})).await?;
    assert_eq!(made["status"], "pending_approval");
    let (status, body) = create(&host, &bob, json!({"required_cores": 2})).await?;
    assert!(
        status == 403 && body["detail"].as_str().unwrap().contains("group 'students'"),
        "{body}"
    );
    // Growing past the rule needs an operator; within it, nothing.
    let more = json!({"required_cores": 3});
    let refused = host.ask(Some(&alice), "PATCH", "/api/vps/small", Some(&more)).await?;
    assert_eq!((refused.status, refused.text("code")), (403, "needs_operator"));
    let less = json!({"required_cores": 1});
    assert_eq!(host.ask(Some(&alice), "PATCH", "/api/vps/small", Some(&less)).await?.status, 202);
    Ok(())
}

#[tokio::test]
async fn instance_names_are_per_account_and_reveal_nothing() -> Result<()> {
    let (host, _runner) = start().await?;
    let (olga, otto) =
        (host.person("olga", "operator").await?, host.person("otto", "operator").await?);
    let eve = host.person("eve", "user").await?;
    let (_, first) = create(&host, &olga, json!({"name": "web", "required_gpus": [0]})).await?;
    let (status, second) = create(&host, &otto, json!({"name": "web"})).await?;
    assert_eq!(status, 200, "{second}");
    assert_eq!(host.get_as(&otto, "/api/status/web").await?.text("task_id"), second["task_id"]);
    let (status, body) = create(&host, &otto, json!({"name": "web"})).await?;
    assert_eq!((status, &body["code"]), (409, &json!("name_taken")));
    // An account that runs the cluster and owns none of them must name which.
    assert_eq!(host.get("/api/status/web").await?.status, 409);
    for reference in ["web", first["task_id"].as_str().unwrap()] {
        let hidden = host.get_as(&eve, &format!("/api/status/{reference}")).await?;
        let nothing = host.get_as(&eve, "/api/status/no-such").await?;
        let same = hidden.text("detail").replace(reference, "X");
        assert_eq!((hidden.status, same), (404, nothing.text("detail").replace("no-such", "X")));
    }
    assert_eq!(host.get_as(&eve, "/api/vps").await?.body, json!([]));
    // Nor from a GPU that is allocated.
    let (_, asked) = create(&host, &eve, json!({"name": "web", "required_gpus": [0]})).await?;
    assert_eq!(asked["status"], "pending_approval");
    Ok(())
}

#[tokio::test]
async fn share_gives_its_level_and_env_requires_manage() -> Result<()> {
    let (host, _runner) = start().await?;
    let olga = host.person("olga", "operator").await?;
    let (alice, bob) = (host.person("alice", "user").await?, host.person("bob", "user").await?);
    let wish = json!({"name": "web", "env_vars": {"SECRET": "s3cret"}});
    create(&host, &olga, wish).await?;
    let path = "/api/vps/web/shares";
    let share = |level: &str| json!({"user": "alice", "level": level});
    assert_eq!(host.ask(Some(&olga), "PUT", path, Some(&share("use"))).await?.status, 200);
    let seen = host.get_as(&alice, "/api/status/web.olga").await?.body;
    assert_eq!((&seen["access"], &seen["env_vars"]), (&json!("use"), &json!({})));
    assert_eq!(host.post_as(&alice, "/api/vps/stop/web.olga", json!({})).await?.status, 403);
    assert_eq!(host.ask(Some(&olga), "PUT", path, Some(&share("manage"))).await?.status, 200);
    let seen = host.get_as(&alice, "/api/status/web.olga").await?.body;
    assert_eq!(seen["env_vars"]["SECRET"], "s3cret");
    assert_eq!(seen["assignees"][0]["username"], "alice");
    // A share cannot be passed on.
    let on = json!({"user": "bob", "level": "view"});
    let others = "/api/vps/web.olga/shares";
    assert_eq!(host.ask(Some(&alice), "PUT", others, Some(&on)).await?.status, 403);
    assert_eq!(host.get_as(&bob, "/api/status/web.olga").await?.status, 404);
    let copy = json!({"from_vps": "web.olga"});
    assert_eq!(host.post_as(&bob, "/api/vps/create", copy).await?.status, 404);
    let gone = host.ask(Some(&olga), "DELETE", "/api/vps/web/shares?user=alice", None).await?;
    assert_eq!(gone.status, 200);
    assert_eq!(host.get_as(&alice, "/api/status/web.olga").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn account_that_owns_instances_cannot_be_deleted() -> Result<()> {
    let (host, _runner) = start().await?;
    let (olga, otto) =
        (host.person("olga", "operator").await?, host.person("otto", "operator").await?);
    create(&host, &olga, json!({"name": "web"})).await?;
    let path = format!("/api/auth/users/{}", olga.id);
    let refused = host.delete(&path).await?;
    assert_eq!((refused.status, refused.text("code")), (409, "has_vps"));
    let given = host.post_as(&olga, "/api/vps/web/owner", json!({"user": "otto"})).await?;
    assert_eq!(given.status, 200, "{given:?}");
    assert_eq!(host.delete(&path).await?.status, 409, "an offer moves nothing");
    let taken = host.post_as(&otto, "/api/vps/offers/web.olga/take", json!({})).await?;
    assert_eq!(taken.status, 200, "{taken:?}");
    assert_eq!(host.get_as(&otto, "/api/status/web").await?.text("access"), "owner");
    assert_eq!(host.delete(&path).await?.status, 200);
    Ok(())
}
