//! Client libraries against the real server: what they greet with, their pipelines, both protocols.

mod support;

use fred::interfaces::{ClientLike as _, KeysInterface as _};
use fred::types::config::Config;
use fred::types::{Expiration, RespVersion};
use redis::{Commands as _, Connection, ErrorKind, ServerErrorKind};
use std::collections::BTreeSet;
use support::Server;

fn redis_rs(server: &Server, options: &str) -> Connection {
    let url = format!("redis://{}/{options}", server.address);
    let client = redis::Client::open(url).expect("an address");
    client.get_connection().expect("it connects")
}

#[test]
fn redis_rs_speaks_both_protocols() {
    let ferrite = Server::ferrite(&[]);
    for options in ["", "?protocol=resp3"] {
        let mut client = redis_rs(&ferrite, options);
        let () = client.set("k", "v").expect("set");
        assert_eq!(client.get::<_, String>("k").expect("get"), "v");
        assert_eq!(client.get::<_, Option<String>>("nothing").expect("get"), None);
        assert_eq!(client.del::<_, i64>(&["k", "nothing"]).expect("del"), 1);
        let () = client.set_ex("k", 1, 100).expect("setex");
        assert!((1..=100).contains(&client.ttl::<_, i64>("k").expect("ttl")));
        let error = client.incr::<_, _, i64>("k", "x").expect_err("no number");
        assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::ResponseError), "{error}");
        let () = client.del("k").expect("del");
    }
}

#[test]
fn redis_rs_pipelines_come_back_in_order() {
    let ferrite = Server::ferrite(&[]);
    let mut client = redis_rs(&ferrite, "3");
    let mut pipeline = redis::pipe();
    for n in 0..5000 {
        pipeline.set(format!("k{n}"), n).ignore();
        pipeline.get(format!("k{n}"));
    }
    let got: Vec<i64> = pipeline.query(&mut client).expect("the pipeline");
    assert_eq!(got, (0..5000).collect::<Vec<_>>());
    let keys: BTreeSet<String> = client
        .scan_match::<_, String>("k1*")
        .expect("scan")
        .collect::<Result<_, _>>()
        .expect("keys");
    assert_eq!(keys.len(), 1111);
    assert_eq!(redis_rs(&ferrite, "").get::<_, Option<i64>>("k1").expect("get"), None);
}

#[test]
fn fred_speaks_both_protocols() {
    let ferrite = Server::ferrite(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        for version in [RespVersion::RESP2, RespVersion::RESP3] {
            let mut config =
                Config::from_url(&format!("redis://{}", ferrite.address)).expect("an address");
            config.version = version;
            let client = fred::clients::Client::new(config, None, None, None);
            client.init().await.expect("it connects");
            let () = client.set("k", "v", None, None, false).await.expect("set");
            assert_eq!(client.get::<String, _>("k").await.expect("get"), "v");
            let expiration = Some(Expiration::EX(100));
            let () = client.set("k", 41, expiration, None, false).await.expect("set");
            assert_eq!(client.incr::<i64, _>("k").await.expect("incr"), 42);
            assert!((1..=100).contains(&client.ttl::<i64, _>("k").await.expect("ttl")));
            let pipeline = client.pipeline();
            for n in 0..1000 {
                let () = pipeline.set(format!("p{n}"), n, None, None, false).await.expect("queued");
                let () = pipeline.get(format!("p{n}")).await.expect("queued");
            }
            let got: Vec<fred::types::Value> = pipeline.all().await.expect("the pipeline");
            let numbers: Vec<_> = got.iter().skip(1).step_by(2).map(|v| v.as_i64()).collect();
            assert_eq!(numbers, (0..1000).map(Some).collect::<Vec<_>>());
            client.quit().await.expect("it leaves");
        }
    });
}
