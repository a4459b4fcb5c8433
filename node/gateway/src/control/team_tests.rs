//! What is asked about the team, over a real socket.

use tvix_node_protocol::control::{
    FailureKind, InviteRequest, JoinRequest, LeaveRequest, MemberName, OwnerAnswer, OwnerQuestion,
    RenewRequest,
};
use tvix_node_protocol::envelope::NodeSecret;
use tvix_node_protocol::roster::{Role, Roles};

use super::client_error::ClientError;
use super::testing::{SWARM, Up, path, peer, put_out, record, team};

#[tokio::test]
async fn everything_about_the_team_has_its_answer() {
    let mut up = Up::patient();
    let client = up.client().await;
    let roles: Roles = [Role::Build, Role::Store].into_iter().collect();
    let invited = client
        .invite(&InviteRequest {
            roles: roles.clone(),
            valid: 60,
            lasts: 3600,
            name: Some("ann".to_owned()),
            team: None,
            new_team: true,
            founders: Vec::new(),
            threshold: None,
            founder: None,
        })
        .await
        .unwrap();
    up.called("invite build, store valid 60 lasts 3600 as Some(\"ann\") to None new true")
        .await;
    assert_eq!(
        (invited.swarm, invited.expires, invited.founded),
        (SWARM, 60, true)
    );
    assert_eq!(invited.roles, roles);
    let joined = client
        .join(&JoinRequest {
            ticket: invited.ticket.unwrap(),
            name: Some("bob".to_owned()),
        })
        .await
        .unwrap();
    up.called("join ticket as Some(\"bob\")").await;
    assert_eq!((joined.name.as_str(), joined.members), ("bob", 2));
    let key = NodeSecret::from_bytes(&[5; 32]).key();
    assert_eq!(client.founder_key().await.unwrap().key, key);
    up.called("founder key").await;
    assert_eq!(client.team(None).await.unwrap(), team());
    up.called("team None").await;
    assert_eq!(client.team(Some("ann's team")).await.unwrap(), team());
    up.called("team Some(\"ann's team\")").await;
    assert_eq!(client.peers(None).await.unwrap(), [peer()]);
    up.called("peers None").await;
    assert_eq!(client.status().await.unwrap().peers, [peer()]);
    up.called("status").await;
    assert_eq!(client.records(path("a")).await.unwrap(), [record("a")]);
    up.called("records a").await;
    let member = || "bob".to_owned();
    let (revoked, named) = (member(), || Some("3f2a91c0".to_owned()));
    let revoked = MemberName {
        member: revoked,
        team: named(),
    };
    assert_eq!(client.revoke(&revoked).await.unwrap(), put_out("bob"));
    up.called("revoke bob of Some(\"3f2a91c0\")").await;
    for (roles, told) in [(None, "None"), (Some(roles), "Some(\"build, store\")")] {
        let (member, lasts) = (member(), 5);
        client
            .renew(&RenewRequest {
                member,
                roles,
                lasts,
                team: None,
            })
            .await
            .unwrap();
        up.called(&format!("renew bob {told} 5 of None")).await;
    }
    let leave = LeaveRequest {
        team: Some("3f2a91c0".to_owned()),
        force: true,
    };
    client.leave(&leave).await.unwrap();
    up.called("leave Some(\"3f2a91c0\") true").await;
    let answer = client.ask_owner(&OwnerQuestion::Trust).await.unwrap();
    assert!(
        matches!(answer, OwnerAnswer::Trust { slots: 2, .. }),
        "{answer:?}"
    );
    up.called("owner Trust").await;
}

#[tokio::test]
async fn why_a_ticket_is_refused_reaches_the_command() {
    let mut up = Up::patient();
    let client = up.client().await;
    let request = JoinRequest {
        ticket: "used".to_owned(),
        name: None,
    };
    match client.join(&request).await.unwrap_err() {
        ClientError::Refused(failure, _) => {
            assert_eq!(failure.kind, FailureKind::Conflict);
            assert_eq!(failure.error, "the ticket has been used");
        }
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_role_that_does_not_exist_is_refused_by_name() {
    let up = Up::patient();
    let body = r#"{"roles":["king"],"valid":1,"lasts":1,"name":null}"#;
    let answer = up
        .exchange(
            format!(
                "POST /v1/team/invite HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("king"), "{answer}");
}

/// What a person with curl types: keys as documented, roles as people write them.
#[tokio::test]
async fn the_team_is_json_for_people() {
    let up = Up::patient();
    let answer = up
        .exchange(b"GET /v1/team HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let view: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(view["swarm"], SWARM.to_string());
    let member = &view["members"][0];
    assert_eq!(
        member["roles"],
        serde_json::json!(["request", "build", "store", "invite"])
    );
    for key in ["issuedBy", "notAfter"] {
        assert!(member[key].is_null(), "{member}");
    }
    assert_eq!((&member["toRenew"], &member["me"]), (&false.into(), &true.into()));
}
