use proptest::prelude::*;
use tokio::io::{DuplexStream, duplex, join, sink};

use super::*;

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn other_than(secret: &GuestSecret) -> GuestSecret {
    let mut bytes = secret.0;
    bytes[31] ^= 1;
    GuestSecret(bytes)
}

/// Returns an honest runner's reply to the given greeting.
async fn proof_for(secret: &GuestSecret, greeting: &[u8]) -> Vec<u8> {
    let (mut near, mut far) = duplex(1024);
    near.write_all(greeting).await.unwrap();
    let proving = prove_to_agent(&mut far, secret);
    let mut proof = vec![0; 2 * LENGTH];
    tokio::select! {
        _ = proving => unreachable!("nobody answers"),
        _ = near.read_exact(&mut proof) => {}
    }
    proof
}

async fn greeting(agent: &mut DuplexStream) -> Vec<u8> {
    let mut hello = vec![0; MAGIC.len() + LENGTH];
    agent.read_exact(&mut hello).await.unwrap();
    hello
}

#[tokio::test]
async fn two_ends_with_one_secret_believe_each_other_and_leave_what_follows() {
    let secret = GuestSecret::random();
    let (mut near, mut far) = duplex(1024);
    let (runner, agent) =
        tokio::join!(prove_to_agent(&mut near, &secret), admit_runner(&mut far, &secret));
    runner.unwrap();
    agent.unwrap();
    near.write_all(b"next").await.unwrap();
    let mut next = [0; 4];
    far.read_exact(&mut next).await.unwrap();
    assert_eq!(&next, b"next");
}

#[tokio::test]
async fn a_runner_with_another_secret_is_told_nothing() {
    let secret = GuestSecret::random();
    let (mut near, mut far) = duplex(1024);
    let agent = async {
        let result = admit_runner(&mut far, &secret).await;
        drop(far);
        result
    };
    let wrong = other_than(&secret);
    let (runner, agent) = tokio::join!(prove_to_agent(&mut near, &wrong), agent);
    assert!(matches!(agent, Err(ProofError::Stranger)));
    assert!(matches!(runner, Err(ProofError::Rejected)));
}

#[tokio::test]
async fn a_proof_that_was_overheard_opens_nothing() {
    let secret = GuestSecret::random();
    let agent = |secret: GuestSecret| {
        let (near, mut far) = duplex(1024);
        (near, tokio::spawn(async move { admit_runner(&mut far, &secret).await }))
    };
    let (mut first, admitted) = agent(secret.clone());
    let heard = proof_for(&secret, &greeting(&mut first).await).await;
    first.write_all(&heard).await.unwrap();
    admitted.await.unwrap().unwrap();

    let (mut second, admitted) = agent(secret.clone());
    greeting(&mut second).await;
    second.write_all(&heard).await.unwrap();
    assert!(matches!(admitted.await.unwrap(), Err(ProofError::Stranger)));
}

#[tokio::test]
async fn an_impostor_that_says_our_own_proof_back_is_not_believed() {
    let secret = GuestSecret::random();
    let (mut near, mut far) = duplex(1024);
    let impostor = async {
        far.write_all(&[&MAGIC[..], &[7; LENGTH]].concat()).await.unwrap();
        let mut proof = [0; 2 * LENGTH];
        far.read_exact(&mut proof).await.unwrap();
        far.write_all(&proof[LENGTH..]).await.unwrap();
    };
    let (runner, ()) = tokio::join!(prove_to_agent(&mut near, &secret), impostor);
    assert!(matches!(runner, Err(ProofError::Stranger)));
}

#[tokio::test]
async fn a_service_of_another_kind_gets_no_proof() {
    let (mut near, mut far) = duplex(1024);
    far.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n...............").await.unwrap();
    let runner = prove_to_agent(&mut near, &GuestSecret::random()).await;
    assert!(matches!(runner, Err(ProofError::Stranger)));
    drop(near);
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.unwrap();
    assert!(heard.is_empty());
}

#[tokio::test(start_paused = true)]
async fn silence_ends_the_proof_at_both_ends() {
    let secret = GuestSecret::random();
    let (mut near, mut far) = duplex(1024);
    let (_silent, mut alone) = duplex(1024);
    let agent = admit_runner(&mut far, &secret);
    assert!(matches!(agent.await, Err(ProofError::Slow)));
    assert!(matches!(prove_to_agent(&mut alone, &secret).await, Err(ProofError::Slow)));
    // One byte now and then is no progress.
    let slow = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            near.write_all(b"x").await.unwrap();
        }
    };
    tokio::select! {
        result = admit_runner(&mut far, &secret) => assert!(matches!(result, Err(ProofError::Slow))),
        () = slow => {}
    }
}

#[test]
fn a_secret_survives_its_text_and_stays_out_of_messages() {
    let secret = GuestSecret::random();
    let text = secret.to_text();
    assert_eq!(format!("{text}\n").parse(), Ok(secret.clone()));
    assert_eq!(text.to_uppercase().parse(), Ok(secret.clone()));
    assert_eq!(format!("{secret:?}"), "GuestSecret");
    for bad in ["", "00", &text[1..], &format!("{text}0"), &text.replacen(&text[..1], "g", 1), "é"]
    {
        assert_eq!(bad.parse::<GuestSecret>(), Err(ParseSecretError), "{bad}");
    }
}

proptest! {
    #[test]
    fn nothing_but_the_proof_is_admitted(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        block_on(async {
            let secret = GuestSecret([1; LENGTH]);
            let mut stream = join(bytes.as_slice(), sink());
            assert!(admit_runner(&mut stream, &secret).await.is_err());
            let mut stream = join(bytes.as_slice(), sink());
            assert!(prove_to_agent(&mut stream, &secret).await.is_err());
        });
    }

    #[test]
    fn a_proof_cut_or_changed_anywhere_is_refused(at in 0..2 * LENGTH, bit in 0..8u8, cut: bool) {
        block_on(async {
            let secret = GuestSecret([1; LENGTH]);
            let (mut near, mut far) = duplex(1024);
            let runner = async {
                let mut proof = proof_for(&secret, &greeting(&mut near).await).await;
                if cut { proof.truncate(at) } else { proof[at] ^= 1 << bit }
                near.write_all(&proof).await.unwrap();
                drop(near);
            };
            let (admitted, ()) = tokio::join!(admit_runner(&mut far, &secret), runner);
            assert!(admitted.is_err());
        });
    }
}
