//! Shares, answers and offers, under any sequence of acts.

#![expect(clippy::unwrap_used, reason = "a test that is surprised should end there")]

use std::collections::HashMap;

use kohakuriver_model::{
    Demand, DockerState, GpuDemand, ImageSource, InstanceId, InstanceName, InstanceSpec, Inventory,
    NodeId, Quota, Role, ShareLevel, UserId,
};
use kohakuriver_store::{
    Consent, Giver, Grantee, NewInstance, NewUser, Resolve, Scope, ShareState, Store, UserChange,
};
use proptest::prelude::*;
use sqlx::Connection;

const NAMES: [&str; 3] = ["web", "db", "ci"];

struct Lab {
    store: Store,
    me: UserId,
    other: UserId,
    dir: tempfile::TempDir,
}

async fn lab() -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("host.db")).await.unwrap();
    let node = NodeId::new("n-1");
    store.create_join_token("hash", 0, 1000, None, None).await.unwrap();
    store.redeem_join_token("hash", &node, &"n1".parse().unwrap(), 1).await.unwrap();
    let inventory = Inventory::of(64, 1 << 40, DockerState::Ready { version: "1".into() });
    store.record_hello(&node, &inventory, "0", 0, 1).await.unwrap();
    let user = async |name: &str| {
        let new = NewUser {
            username: name.to_owned(),
            display_name: name.to_owned(),
            role: Role::User,
            password: None,
            external: None,
        };
        store.create_user(&new, 1).await.unwrap().id
    };
    let (me, other) = (user("me").await, user("other").await);
    Lab { store, me, other, dir }
}

impl Lab {
    async fn create(&self, owner: UserId, name: &str) -> Option<InstanceId> {
        let spec = InstanceSpec {
            cores: 1,
            name: Some(name.parse().unwrap()),
            ..InstanceSpec::new(ImageSource::Default)
        };
        let new = NewInstance {
            id: InstanceId::from_u64(1),
            target: None,
            demand: Demand {
                cores: 1,
                memory_bytes: 0,
                gpus: GpuDemand::None,
                numa: None,
                backend: spec.backend(),
            },
            spec,
            actor: "tester".to_owned(),
            owner: Some(owner),
            consent: Consent::NotNeeded,
            names_others: true,
        };
        self.store.create_instance(new, &HashMap::new(), 5).await.ok().map(|row| row.id)
    }

    fn scope(&self) -> Scope {
        Scope { me: Some(self.me), all: false, others_by_name: false }
    }

    async fn resolve(&self, text: &str) -> Resolve {
        self.store.resolve_instance(text, self.scope()).await.unwrap()
    }

    async fn owner(&self, id: InstanceId) -> UserId {
        self.store.lookup_instance(id).await.unwrap().unwrap().owner.unwrap().id
    }
}

/// The other account's acts, and this account's answers.
#[derive(Clone, Debug)]
enum Step {
    Create { mine: bool, name: usize },
    Share { which: usize },
    Unshare { which: usize },
    Take { which: usize, alias: Option<usize> },
    Decline { which: usize },
    Offer { which: usize },
    TakeOffer { which: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = 0..6usize;
    let step = prop_oneof![
        (any::<bool>(), 0..NAMES.len()).prop_map(|(mine, name)| Step::Create { mine, name }),
        which.clone().prop_map(|which| Step::Share { which }),
        which.clone().prop_map(|which| Step::Unshare { which }),
        (which.clone(), proptest::option::of(0..NAMES.len()))
            .prop_map(|(which, alias)| Step::Take { which, alias }),
        which.clone().prop_map(|which| Step::Decline { which }),
        which.clone().prop_map(|which| Step::Offer { which }),
        which.prop_map(|which| Step::TakeOffer { which }),
    ];
    proptest::collection::vec(step, 1..24)
}

async fn play(steps: Vec<Step>) {
    let lab = lab().await;
    let Lab { store, me, other, .. } = &lab;
    let mut all: Vec<InstanceId> = Vec::new();
    for (at, step) in steps.into_iter().enumerate() {
        let now_ms = 10 + at as i64;
        let id = |which: usize| all.get(which).copied().unwrap_or(InstanceId::from_u64(9));
        let before: Vec<_> = {
            let mut owners = Vec::new();
            for id in &all {
                owners.push(lab.owner(*id).await);
            }
            owners
        };
        let taken_by_me = matches!(step, Step::TakeOffer { .. });
        let by = (Giver::Owner(*other), "other");
        let with_me = [Grantee::User(*me)];
        match step {
            Step::Create { mine, name } => {
                let owner = if mine { *me } else { *other };
                all.extend(lab.create(owner, NAMES[name]).await);
            }
            Step::Share { which } => {
                let _ = store.set_shares(id(which), &with_me, ShareLevel::Use, by, now_ms).await;
            }
            Step::Unshare { which } => {
                let _ = store.delete_share(id(which), with_me[0], by, now_ms).await;
            }
            Step::Take { which, alias } => {
                let alias: Option<InstanceName> = alias.map(|at| NAMES[at].parse().unwrap());
                let _ = store.take_share(id(which), (*me, "me"), alias.as_ref(), now_ms).await;
            }
            Step::Decline { which } => {
                let _ = store.decline_share(id(which), (*me, "me"), now_ms).await;
            }
            Step::Offer { which } => {
                let _ = store.make_offer(id(which), (*me, "me"), by, now_ms).await;
            }
            Step::TakeOffer { which } => {
                let _ = store.take_offer(id(which), (*me, "me"), now_ms).await;
            }
        }
        check(&lab, &all, &before, taken_by_me).await;
    }
}

async fn check(lab: &Lab, all: &[InstanceId], before: &[UserId], taken_by_me: bool) {
    let Lab { store, me, other, .. } = lab;
    let shared = store.shared_with(*me).await.unwrap();
    let mut owned = [0, 0];
    let mut own_names = HashMap::new();
    for (at, id) in all.iter().enumerate() {
        let owner = lab.owner(*id).await;
        let moved = before.get(at).is_some_and(|before| *before != owner);
        assert!(!moved || taken_by_me, "it moved without being taken");
        owned[usize::from(owner == *me)] += 1;
        let row = store.lookup_instance(*id).await.unwrap().unwrap();
        let name = row.spec.name.unwrap();
        if owner == *me {
            assert!(own_names.insert(name.clone(), *id).is_none(), "two of one name");
            assert!(!shared.contains_key(id), "one's own is shared with nobody but others");
        } else if shared.contains_key(id) {
            assert_eq!(lab.resolve(&format!("{name}.other")).await, Resolve::One(*id));
        } else {
            assert_eq!(lab.resolve(&format!("{name}.other")).await, Resolve::None);
            assert_eq!(lab.resolve(&id.to_string()).await, Resolve::None);
        }
    }
    for (name, id) in &own_names {
        assert_eq!(lab.resolve(name.as_str()).await, Resolve::One(*id), "one's own is first");
    }
    for name in NAMES {
        let foreign = match lab.resolve(name).await {
            Resolve::One(id) if !own_names.values().any(|own| *own == id) => id,
            Resolve::One(_) | Resolve::None => continue,
            Resolve::Many(ids) => panic!("'{name}' means {ids:?}"),
        };
        let share = &shared[&foreign];
        assert!(share.taken && share.alias.as_deref() == Some(name), "'{name}': {share:?}");
    }
    for (user, count) in [(*other, owned[0]), (*me, owned[1])] {
        assert_eq!(store.holdings(user, 99).await.unwrap().instances, count);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn others_acts_move_nothing_and_take_no_own_name(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
            .block_on(play(steps));
    }
}

#[tokio::test]
async fn concurrent_takes_stay_within_quota() {
    let lab = lab().await;
    let quota = Quota { instances: Some(1), ..Quota::default() };
    let change = UserChange { quota: Some(quota), ..UserChange::default() };
    lab.store.change_user(lab.me, &change).await.unwrap();
    let mut offers = Vec::new();
    for name in NAMES {
        let id = lab.create(lab.other, name).await.unwrap();
        let by = (Giver::Owner(lab.other), "other");
        lab.store.make_offer(id, (lab.me, "me"), by, 10).await.unwrap();
        offers.push(id);
    }
    let take = |id| lab.store.take_offer(id, (lab.me, "me"), 11);
    let (a, b, c) = tokio::join!(take(offers[0]), take(offers[1]), take(offers[2]));
    assert_eq!([a.is_ok(), b.is_ok(), c.is_ok()].iter().filter(|ok| **ok).count(), 1);
    assert_eq!(lab.store.holdings(lab.me, 12).await.unwrap().instances, 1);
}

#[tokio::test]
async fn former_owner_cannot_share() {
    let lab = lab().await;
    let id = lab.create(lab.other, "web").await.unwrap();
    let by = (Giver::Owner(lab.other), "other");
    lab.store.make_offer(id, (lab.me, "me"), by, 10).await.unwrap();
    lab.store.take_offer(id, (lab.me, "me"), 11).await.unwrap();
    // A permission checked before the transfer is checked again on write.
    let to = [Grantee::User(lab.other)];
    assert!(lab.store.set_shares(id, &to, ShareLevel::Manage, by, 12).await.is_err());
    assert!(lab.store.make_offer(id, (lab.other, "other"), by, 12).await.is_err());
    assert!(lab.store.list_shares(id).await.unwrap().is_empty());
}

#[tokio::test]
async fn shares_of_old_database_count_as_taken() {
    let lab = lab().await;
    let id = lab.create(lab.other, "web").await.unwrap();
    let by = (Giver::Owner(lab.other), "other");
    let to = [Grantee::User(lab.me)];
    lab.store.set_shares(id, &to, ShareLevel::Use, by, 10).await.unwrap();
    assert_eq!(lab.store.received_shares(lab.me).await.unwrap()[0].state, ShareState::Offered);
    lab.store.close().await;
    // As the version before left it.
    let path = lab.dir.path().join("host.db");
    let url = format!("sqlite://{}", path.display());
    let mut database = sqlx::SqliteConnection::connect(&url).await.unwrap();
    for sql in [
        "DROP TABLE share_answers",
        "DROP TABLE offers",
        "DELETE FROM _sqlx_migrations WHERE version = 5",
    ] {
        sqlx::query(sql).execute(&mut database).await.unwrap();
    }
    database.close().await.unwrap();
    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.received_shares(lab.me).await.unwrap()[0].state, ShareState::Taken);
}
