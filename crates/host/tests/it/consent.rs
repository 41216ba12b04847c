//! Consent: which acts on another account's lists, names, quota and access need that account's own
//! act.

use std::time::Duration;

use anyhow::Result;
use kohakuriver_testkit::{Answer, FakeRunner, Person, Reaction, TestHost};
use serde_json::{Value, json};

struct Lab {
    host: TestHost,
    _runner: FakeRunner,
    bob: Person,
    mallory: Person,
    olga: Person,
}

impl Lab {
    async fn start() -> Result<Self> {
        let host = TestHost::start_with(|config| config.auth.enabled = true).await?;
        let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
        let bob = host.person("bob", "user").await?;
        let mallory = host.person("mallory", "user").await?;
        let olga = host.person("olga", "operator").await?;
        Ok(Self { host, _runner: runner, bob, mallory, olga })
    }

    /// Creates a running VPS of the account.
    async fn vps(&self, who: &Person, wish: Value) -> Result<String> {
        let made = self.host.post_as(who, "/api/vps/create", wish).await?;
        let id = made.text("task_id").to_owned();
        if made.text("status") == "pending_approval" {
            let approved = self.host.post(&format!("/api/approve/{id}"), json!({})).await?;
            assert_eq!(approved.status, 200, "{approved:?}");
        }
        self.host.wait_for(&id, "running").await?;
        Ok(id)
    }

    async fn share(&self, who: &Person, id: &str, wish: Value) -> Result<Answer> {
        self.host.ask(Some(who), "PUT", &format!("/api/vps/{id}/shares"), Some(&wish)).await
    }

    async fn give(&self, who: &Person, id: &str, to: &str) -> Result<Answer> {
        self.host.post_as(who, &format!("/api/vps/{id}/owner"), json!({"user": to})).await
    }

    async fn received(&self, who: &Person) -> Result<Value> {
        Ok(self.host.get_as(who, "/api/vps/shares").await?.body)
    }

    /// The names of VPSes in each of the account's lists.
    async fn lists(&self, who: &Person) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for path in ["/api/vps", "/api/vps/status", "/api/vps/my"] {
            let tasks = self.host.get_as(who, path).await?.body;
            all.push(
                tasks
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|task| task["reference"].as_str().unwrap())
                    .collect::<Vec<_>>()
                    .join(" "),
            );
        }
        all.dedup();
        Ok(all)
    }

    async fn find(&self, who: &Person, text: &str) -> Result<Option<String>> {
        let answer = self.host.get_as(who, &format!("/api/status/{text}")).await?;
        Ok((answer.status == 200).then(|| answer.text("task_id").to_owned()))
    }

    async fn quota(&self, who: &Person, quota: Value) -> Result<()> {
        let path = format!("/api/auth/users/{}", who.id);
        let set = self.host.patch(&path, json!({"quota": quota})).await?;
        assert_eq!(set.status, 200, "{set:?}");
        Ok(())
    }

    async fn held(&self, who: &Person, what: &str) -> Result<Value> {
        Ok(self.host.get_as(who, "/api/auth/quota").await?.body["held"][what].clone())
    }

    /// A group with these members.
    async fn group(&self, name: &str, members: &[&Person]) -> Result<String> {
        let made = self.host.post("/api/auth/groups", json!({"name": name})).await?;
        let path = format!("/api/auth/groups/{}", made.body["id"]);
        for member in members {
            assert_eq!(self.host.put(&format!("{path}/members/{}", member.id)).await?.status, 200);
        }
        Ok(path)
    }
}

fn used(name: &str) -> Value {
    json!({"user": name, "level": "use"})
}

#[tokio::test]
async fn share_gives_access_and_is_listed_once_taken() -> Result<()> {
    let lab = Lab::start().await?;
    let id = lab.vps(&lab.mallory, json!({"name": "web"})).await?;
    assert_eq!(lab.share(&lab.mallory, &id, used("bob")).await?.status, 200);
    // By its id and by its owner; a plain name is the account's own.
    for text in [id.as_str(), "web.mallory", "web.Mallory"] {
        assert_eq!(lab.find(&lab.bob, text).await?, Some(id.clone()), "{text}");
    }
    assert_eq!(lab.find(&lab.bob, "web").await?, None);
    assert_eq!(lab.lists(&lab.bob).await?, [""], "nothing was asked of bob yet");
    let waits = lab.received(&lab.bob).await?;
    let share = &waits["shares"][0];
    assert_eq!((&share["reference"], &share["state"]), (&json!("web.mallory"), &json!("offered")));
    let take = "/api/vps/shares/web.mallory/take";
    let taken = lab.host.post_as(&lab.bob, take, json!({})).await?;
    assert_eq!((taken.status, taken.text("reference")), (200, "web.mallory"), "{taken:?}");
    assert_eq!(lab.lists(&lab.bob).await?, ["web.mallory"]);
    let seen = lab.host.get_as(&lab.mallory, "/api/status/web").await?.body;
    assert_eq!(seen["shares"][0]["state"], "taken", "its owner sees who takes part");
    // Another level is not a new share; a recreated share is.
    let manage = json!({"user": "bob", "level": "manage"});
    assert_eq!(lab.share(&lab.mallory, &id, manage).await?.status, 200);
    assert_eq!(lab.lists(&lab.bob).await?, ["web.mallory"]);
    let ends = format!("/api/vps/{id}/shares?user=bob");
    assert_eq!(lab.host.ask(Some(&lab.mallory), "DELETE", &ends, None).await?.status, 200);
    assert_eq!(lab.find(&lab.bob, &id).await?, None);
    lab.host.advance(Duration::from_secs(1));
    assert_eq!(lab.share(&lab.mallory, &id, used("bob")).await?.status, 200);
    assert_eq!(lab.lists(&lab.bob).await?, [""]);
    Ok(())
}

#[tokio::test]
async fn shared_name_never_hides_an_own_name() -> Result<()> {
    let lab = Lab::start().await?;
    let own = lab.vps(&lab.bob, json!({"name": "web"})).await?;
    let foreign = lab.vps(&lab.mallory, json!({"name": "web"})).await?;
    assert_eq!(lab.share(&lab.mallory, &foreign, used("bob")).await?.status, 200);
    let take = format!("/api/vps/shares/{foreign}/take");
    assert_eq!(lab.host.post_as(&lab.bob, &take, json!({})).await?.status, 200);
    assert_eq!(lab.find(&lab.bob, "web").await?, Some(own.clone()));
    assert_eq!(lab.find(&lab.bob, "web.bob").await?, Some(own.clone()));
    assert_eq!(lab.find(&lab.bob, "web.mallory").await?, Some(foreign.clone()));
    assert_eq!(lab.lists(&lab.bob).await?, ["web.mallory web"]);
    // A name of the receiver's choice, as long as none of its own VPSes has it.
    let taken = lab.host.post_as(&lab.bob, &take, json!({"as": "web"})).await?;
    assert_eq!((taken.status, taken.text("code")), (409, "name_taken"));
    let reserved = lab.host.post_as(&lab.bob, &take, json!({"as": "localhost"})).await?;
    assert_eq!((reserved.status, reserved.text("code")), (422, "invalid"));
    assert_eq!(lab.host.post_as(&lab.bob, &take, json!({"as": "hers"})).await?.status, 200);
    assert_eq!(lab.find(&lab.bob, "hers").await?, Some(foreign.clone()));
    assert_eq!(lab.lists(&lab.bob).await?, ["hers web"]);
    let hers = lab.vps(&lab.bob, json!({"name": "hers"})).await?;
    assert_eq!(lab.find(&lab.bob, "hers").await?, Some(hers));
    assert_eq!(lab.lists(&lab.bob).await?, ["hers web.mallory web"]);
    // Nor by an id's prefix.
    let common: String =
        own.chars().zip(foreign.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    let mine = lab.host.get_as(&lab.bob, &format!("/api/status/{common}")).await?;
    assert!(!mine.text("hint").contains(&foreign), "{mine:?}");
    Ok(())
}

#[tokio::test]
async fn declined_share_ends_access_and_is_not_repeated() -> Result<()> {
    let lab = Lab::start().await?;
    let id = lab.vps(&lab.mallory, json!({"name": "web", "ssh_key_mode": "none"})).await?;
    lab.group("lab", &[&lab.bob, &lab.mallory]).await?;
    let by_group = json!({"group": "lab", "level": "use"});
    assert_eq!(lab.share(&lab.mallory, &id, by_group).await?.status, 200);
    let decline = format!("/api/vps/shares/{id}/decline");
    assert_eq!(lab.host.post_as(&lab.bob, &decline, json!({})).await?.status, 200);
    assert_eq!(lab.find(&lab.bob, &id).await?, None);
    let stream = format!("/api/vps/{id}/stream?target=ping");
    let knocked = lab.host.knock(Some(&lab.bob), &stream, "kohakuriver-stream").await?;
    assert_eq!(knocked.0, 404);
    for again in [used("bob"), json!({"user": "bob", "level": "manage"})] {
        lab.host.advance(Duration::from_secs(1));
        assert_eq!(lab.share(&lab.mallory, &id, again).await?.status, 200);
        assert_eq!(lab.received(&lab.bob).await?["shares"][0]["state"], "declined");
        assert_eq!(lab.find(&lab.bob, &id).await?, None);
    }
    // The account can change its answer later.
    let take = format!("/api/vps/shares/{id}/take");
    assert_eq!(lab.host.post_as(&lab.bob, &take, json!({})).await?.status, 200);
    assert_eq!(lab.lists(&lab.bob).await?, ["web.mallory"]);
    let strange = lab.host.post_as(&lab.olga, &take, json!({})).await?;
    assert_eq!((strange.status, strange.text("code")), (404, "not_shared"));
    Ok(())
}

#[tokio::test]
async fn offer_moves_nothing_until_taken() -> Result<()> {
    let lab = Lab::start().await?;
    lab.quota(&lab.bob, json!({"instances": 1, "cores": 1})).await?;
    let own = lab.vps(&lab.bob, json!({"name": "web", "required_cores": 1})).await?;
    let gift = lab.vps(&lab.mallory, json!({"name": "gift", "required_cores": 2})).await?;
    let offered = lab.give(&lab.mallory, &gift, "bob").await?;
    assert_eq!(offered.status, 200, "{offered:?}");
    assert_eq!(lab.held(&lab.bob, "instances").await?, 1);
    assert_eq!(lab.held(&lab.mallory, "cores").await?, 2);
    assert_eq!(lab.find(&lab.bob, &gift).await?, None, "an offer is no access");
    let offers = lab.received(&lab.bob).await?["offers"].clone();
    assert_eq!(offers[0]["reference"], "gift.mallory");
    let shown = lab.host.get_as(&lab.mallory, "/api/status/gift").await?.body;
    assert_eq!((&shown["access"], &shown["offered_to"]), (&json!("owner"), &json!("bob")));
    // The receiver's quota is checked when the offer is taken, in that transaction.
    let take = "/api/vps/offers/gift.mallory/take";
    let refused = lab.host.post_as(&lab.bob, take, json!({})).await?;
    assert_eq!((refused.status, refused.text("code")), (403, "over_quota"));
    assert_eq!(lab.held(&lab.mallory, "instances").await?, 1, "nothing was half done");
    assert_eq!(lab.find(&lab.mallory, "gift").await?, Some(gift.clone()));
    lab.quota(&lab.bob, json!({"instances": 2, "cores": 3})).await?;
    let taken = lab.host.post_as(&lab.bob, take, json!({})).await?;
    assert_eq!((taken.status, taken.text("access")), (200, "owner"), "{taken:?}");
    assert_eq!(lab.held(&lab.bob, "cores").await?, 3);
    assert_eq!(lab.held(&lab.mallory, "instances").await?, 0);
    assert_eq!(lab.find(&lab.mallory, &gift).await?, None);
    assert_eq!(lab.find(&lab.bob, "web").await?, Some(own));
    let again = lab.host.post_as(&lab.bob, take, json!({})).await?;
    assert_eq!((again.status, again.text("code")), (404, "no_offer"));
    let events = lab.host.get_as(&lab.bob, "/api/vps/gift/events").await?.body;
    let kinds: Vec<_> = events.as_array().unwrap().iter().map(|e| &e["kind"]).collect();
    assert!(kinds.contains(&&json!("offer")) && kinds.contains(&&json!("owner")), "{kinds:?}");
    Ok(())
}

#[tokio::test]
async fn offer_reveals_nothing_of_receiver_and_can_end() -> Result<()> {
    let lab = Lab::start().await?;
    lab.vps(&lab.bob, json!({"name": "web"})).await?;
    let id = lab.vps(&lab.mallory, json!({"name": "web"})).await?;
    let free = lab.vps(&lab.mallory, json!({"name": "free"})).await?;
    let (taken, other) =
        (lab.give(&lab.mallory, &id, "bob").await?, lab.give(&lab.mallory, &free, "bob").await?);
    assert_eq!((taken.status, &taken.body), (200, &other.body), "bob's names show in no answer");
    let take = |name: &str| format!("/api/vps/offers/{name}/take");
    let refused = lab.host.post_as(&lab.bob, &take("web.mallory"), json!({})).await?;
    assert_eq!((refused.status, refused.text("code")), (409, "name_taken"));
    // Declined, withdrawn, expired, and by another account.
    let decline = "/api/vps/offers/web.mallory/decline";
    assert_eq!(lab.host.post_as(&lab.bob, decline, json!({})).await?.status, 200);
    let withdraw = format!("/api/vps/{free}/owner");
    let by_olga = lab.host.ask(Some(&lab.olga), "DELETE", &withdraw, None).await?;
    assert_eq!((by_olga.status, by_olga.text("code")), (403, "not_yours"));
    assert_eq!(lab.host.ask(Some(&lab.mallory), "DELETE", &withdraw, None).await?.status, 200);
    assert_eq!(lab.received(&lab.bob).await?["offers"], json!([]));
    assert_eq!(lab.give(&lab.mallory, &free, "bob").await?.status, 200);
    let stranger = lab.host.post_as(&lab.olga, &take(&free), json!({})).await?;
    assert_eq!((stranger.status, stranger.text("code")), (404, "no_offer"));
    lab.host.advance(Duration::from_secs(15 * 24 * 3600));
    let late = lab.host.post_as(&lab.bob, &take(&free), json!({})).await?;
    assert_eq!((late.status, late.text("code")), (404, "no_offer"));
    assert_eq!(lab.find(&lab.mallory, "free").await?, Some(free));
    Ok(())
}

#[tokio::test]
async fn taken_offer_resets_answers_to_its_shares() -> Result<()> {
    let lab = Lab::start().await?;
    let carol = lab.host.person("carol", "user").await?;
    let id = lab.vps(&lab.bob, json!({"name": "web"})).await?;
    assert_eq!(lab.share(&lab.bob, &id, used("carol")).await?.status, 200);
    let take = format!("/api/vps/shares/{id}/take");
    assert_eq!(lab.host.post_as(&carol, &take, json!({"as": "web"})).await?.status, 200);
    assert_eq!(lab.give(&lab.bob, &id, "mallory").await?.status, 200);
    let take = format!("/api/vps/offers/{id}/take");
    assert_eq!(lab.host.post_as(&lab.mallory, &take, json!({})).await?.status, 200);
    assert_eq!(lab.find(&carol, "web").await?, None, "it was bob's under that name");
    assert_eq!(lab.lists(&carol).await?, [""]);
    assert_eq!(lab.find(&carol, "web.mallory").await?, Some(id));
    Ok(())
}

#[tokio::test]
async fn gpu_hours_and_group_quotas_follow_the_owner() -> Result<()> {
    let lab = Lab::start().await?;
    let group = lab.group("lab", &[&lab.bob, &lab.mallory]).await?;
    let wish = json!({"name": "gpu", "required_cores": 2, "required_gpus": [0, 1]});
    let id = lab.vps(&lab.mallory, wish).await?;
    // Full with its members' instances: moving one within the group adds nothing.
    let quota = json!({"quota": {"instances": 1, "gpus": 2, "cores": 2}});
    assert_eq!(lab.host.patch(&group, quota).await?.status, 200);
    lab.host.advance(Duration::from_secs(3 * 3600));
    assert_eq!(lab.give(&lab.mallory, &id, "bob").await?.status, 200);
    let take = format!("/api/vps/offers/{id}/take");
    let taken = lab.host.post_as(&lab.bob, &take, json!({})).await?;
    assert_eq!(taken.status, 200, "{taken:?}");
    lab.host.advance(Duration::from_secs(2 * 3600));
    assert_eq!(lab.held(&lab.mallory, "gpu_hours").await?, 6, "used by mallory");
    assert_eq!(lab.held(&lab.bob, "gpu_hours").await?, 4, "used by bob since");
    assert_eq!(lab.held(&lab.bob, "gpus").await?, 2);
    Ok(())
}

#[tokio::test]
async fn operators_cannot_share_others_instances() -> Result<()> {
    let lab = Lab::start().await?;
    let id = lab.vps(&lab.bob, json!({"name": "secret", "ssh_key_mode": "none"})).await?;
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPqYzXX0rqCnGQ0hTVVDLqUiAL2P6bcNfHBXk1vKMYKp";
    let manage = json!({"user": "olga", "level": "manage"});
    let assign = json!([lab.olga.id]);
    let give = json!({"user": "olga"});
    let add_key = json!({"add_ssh_keys": key});
    for (method, path, body) in [
        ("PUT", format!("/api/vps/{id}/shares"), &manage),
        ("POST", format!("/api/vps/{id}/assign"), &assign),
        ("POST", format!("/api/vps/{id}/owner"), &give),
        ("PATCH", format!("/api/vps/{id}"), &add_key),
    ] {
        let refused = lab.host.ask(Some(&lab.olga), method, &path, Some(body)).await?;
        assert_eq!((refused.status, refused.text("code")), (403, "not_yours"), "{method} {path}");
    }
    // Operations that run the cluster stay allowed.
    let less = json!({"pids_limit": 100});
    let path = format!("/api/vps/{id}");
    assert_eq!(lab.host.ask(Some(&lab.olga), "PATCH", &path, Some(&less)).await?.status, 202);
    lab.host.wait_for(&id, "running").await?;
    let stop = format!("/api/vps/stop/{id}");
    assert_eq!(lab.host.post_as(&lab.olga, &stop, json!({})).await?.status, 202);
    // An admin may, and takes over without another account's consent.
    let taken = lab.host.post(&format!("/api/vps/{id}/owner"), json!({"user": "root"})).await?;
    assert_eq!(taken.status, 200, "{taken:?}");
    assert_eq!(lab.host.get(&format!("/api/status/{id}")).await?.text("access"), "owner");
    Ok(())
}

#[tokio::test]
async fn plain_name_of_others_vps_gives_admin_no_access() -> Result<()> {
    let lab = Lab::start().await?;
    lab.vps(&lab.mallory, json!({"name": "web", "ssh_key_mode": "none"})).await?;
    assert_eq!(lab.host.get("/api/status/web").await?.status, 200, "to inspect and to stop");
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPqYzXX0rqCnGQ0hTVVDLqUiAL2P6bcNfHBXk1vKMYKp";
    let wish = json!({"public_key": key});
    let by_name = lab.host.post("/api/vps/web/ssh-cert", wish.clone()).await?;
    assert_eq!((by_name.status, by_name.text("code")), (404, "not_found"));
    let copy = lab.host.post("/api/vps/create", json!({"from_vps": "web"})).await?;
    assert_eq!((copy.status, copy.text("code")), (404, "not_found"));
    let outright = lab.host.post("/api/vps/web.mallory/ssh-cert", wish).await?;
    assert_eq!(outright.status, 200, "{outright:?}");
    Ok(())
}

#[tokio::test]
async fn approval_of_changed_request_is_refused() -> Result<()> {
    let lab = Lab::start().await?;
    let ask = async |wish: Value| lab.host.post_as(&lab.mallory, "/api/vps/create", wish).await;
    let small = ask(json!({"name": "small", "required_memory_bytes": 300 << 20})).await?;
    assert_eq!(small.text("status"), "pending_approval");
    let shown = lab.host.get_as(&lab.olga, "/api/status/small").await?;
    let revision = shown.text("approval_revision").to_owned();
    assert!(!revision.is_empty());
    let withdrawn = lab.host.ask(Some(&lab.mallory), "DELETE", "/api/vps/small", None).await?;
    assert_eq!(withdrawn.status, 202);
    let large = ask(json!({"name": "small", "required_memory_bytes": 12_i64 << 30})).await?;
    assert_eq!(large.text("status"), "pending_approval");
    let approve = format!("/api/approve/small?revision={revision}");
    let refused = lab.host.post_as(&lab.olga, &approve, json!({})).await?;
    assert_eq!((refused.status, refused.text("code")), (409, "changed"), "{refused:?}");
    assert_eq!(lab.host.get("/api/status/small").await?.text("status"), "pending_approval");
    let shown = lab.host.get_as(&lab.olga, "/api/status/small").await?;
    let approve = format!("/api/approve/small?revision={}", shown.text("approval_revision"));
    assert_eq!(lab.host.post_as(&lab.olga, &approve, json!({})).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn users_cannot_enumerate_accounts() -> Result<()> {
    let lab = Lab::start().await?;
    let id = lab.vps(&lab.mallory, json!({"name": "web"})).await?;
    let bobs = format!("/api/auth/users/{}", lab.bob.id);
    assert_eq!(lab.host.patch(&bobs, json!({"display_name": "Robert B."})).await?.status, 200);
    let assign = format!("/api/vps/{id}/assign");
    let there = lab.host.post_as(&lab.mallory, &assign, json!([lab.bob.id])).await?;
    let not = lab.host.post_as(&lab.mallory, &assign, json!([999_999])).await?;
    assert_eq!((there.status, not.status), (404, 404));
    let same = there.text("detail").replace(&lab.bob.id.to_string(), "999999");
    assert_eq!(same, not.text("detail"));
    // By user name, which the caller must know; the display name is hidden from users.
    assert_eq!(lab.share(&lab.mallory, &id, used("bob")).await?.status, 200);
    let assigned = lab.host.get_as(&lab.mallory, &format!("/api/vps/{id}/assignments")).await?;
    let one = &assigned.body["assignments"][0];
    assert_eq!((&one["username"], &one["display_name"]), (&json!("bob"), &json!("bob")));
    let seen = lab.host.get_as(&lab.mallory, &format!("/api/status/{id}")).await?.body;
    assert_eq!(seen["assignees"][0]["display_name"], "bob");
    // By number for accounts it is already shared with, as clients send the list again.
    assert_eq!(lab.host.post_as(&lab.mallory, &assign, json!([lab.bob.id])).await?.status, 200);
    let seen = lab.host.get(&format!("/api/status/{id}")).await?.body;
    assert_eq!(seen["assignees"][0]["display_name"], "Robert B.", "operators list accounts");
    // Guesses are throttled.
    let mut tries = 0;
    let slowed = loop {
        let guess = used(&format!("user{tries}"));
        let answer = lab.share(&lab.mallory, &id, guess).await?;
        if answer.status != 404 {
            break answer;
        }
        tries += 1;
        assert!(tries < 20, "one can guess on and on");
    };
    assert_eq!((slowed.status, slowed.text("code")), (429, "too_many_shares"));
    let others = lab.vps(&lab.bob, json!({"name": "own"})).await?;
    assert_eq!(lab.share(&lab.bob, &others, used("mallory")).await?.status, 200, "bob's pace");
    Ok(())
}

#[tokio::test]
async fn group_share_is_taken_by_each_member() -> Result<()> {
    let lab = Lab::start().await?;
    let carol = lab.host.person("carol", "user").await?;
    lab.group("lab", &[&lab.bob, &carol]).await?;
    let by_group = json!({"group": "lab", "level": "use"});
    let id = lab.vps(&lab.mallory, json!({"name": "spam"})).await?;
    let refused = lab.share(&lab.mallory, &id, by_group.clone()).await?;
    let unknown = lab.share(&lab.mallory, &id, json!({"group": "zzz", "level": "use"})).await?;
    assert_eq!((refused.status, refused.text("code")), (404, "unknown_group"));
    let same = refused.text("detail").replace("lab", "zzz");
    assert_eq!((unknown.status, unknown.text("detail")), (404, same.as_str()));
    let id = lab.vps(&lab.bob, json!({"name": "tools"})).await?;
    assert_eq!(lab.share(&lab.bob, &id, by_group).await?.status, 200);
    assert_eq!(lab.lists(&carol).await?, [""]);
    assert_eq!(lab.received(&carol).await?["shares"][0]["groups"], json!(["lab"]));
    let take = "/api/vps/shares/tools.bob/take";
    assert_eq!(lab.host.post_as(&carol, take, json!({})).await?.status, 200);
    assert_eq!(lab.lists(&carol).await?, ["tools.bob"]);
    assert_eq!(lab.received(&lab.bob).await?["shares"], json!([]), "one's own is not received");
    Ok(())
}

#[tokio::test]
async fn reserved_names_are_refused_for_vpses() -> Result<()> {
    let lab = Lab::start().await?;
    for name in ["localhost", "none", "kohakuriver-vps-7"] {
        let refused = lab.host.post_as(&lab.olga, "/api/vps/create", json!({"name": name})).await?;
        assert_eq!((refused.status, refused.text("code")), (422, "invalid"), "{refused:?}");
        assert!(refused.text("detail").contains(name), "{refused:?}");
    }
    Ok(())
}

#[tokio::test]
async fn privileged_offer_is_taken_by_operators_only() -> Result<()> {
    let host = TestHost::start_with(|config| config.auth.enabled = true).await?;
    let inventory = kohakuriver_model::Inventory {
        allows_privileged: true,
        ..kohakuriver_testkit::inventory()
    };
    let _runner = FakeRunner::join_as(&host, "n1", Reaction::Obey, inventory).await?;
    let [bob, olga] = [host.person("bob", "user").await?, host.person("olga", "operator").await?];
    let wish = json!({"name": "root", "privileged": true});
    let made = host.post_as(&olga, "/api/vps/create", wish).await?;
    let id = made.text("task_id").to_owned();
    let give = format!("/api/vps/{id}/owner");
    assert_eq!(host.post_as(&olga, &give, json!({"user": "bob"})).await?.status, 200);
    let refused = host.post_as(&bob, &format!("/api/vps/offers/{id}/take"), json!({})).await?;
    assert_eq!((refused.status, refused.text("code")), (403, "role"), "{refused:?}");
    Ok(())
}
