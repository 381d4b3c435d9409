//! What a process bound its socket to, on the connection that the proxy makes for it.

use std::net::{SocketAddr, TcpListener};

use super::{DialError, Flow, dial};
use crate::redirection::Redirection;
use crate::redirection::kernel_tests::ground::{Ground, listen};
use crate::redirection::kernel_tests::netns::{alone, interface};

/// Both ends of what was dialled for one client, and what it had wanted.
struct Dialled {
    flow: Flow,
    dialled: Result<SocketAddr, DialError>,
}

/// A proxy that dials where the client wanted to go, and tells from where.
fn serve_one(
    ground: &Ground,
    redirection: &Redirection,
    listeners: [&TcpListener; 2],
    ask: &[&str],
) -> Dialled {
    let listener = listeners[usize::from(ask[1].contains(':') && !ask[1].starts_with("::ffff:"))];
    let client = ground.client(&ground.governed, ask);
    let going = std::thread::spawn(move || client.go());
    let (accepted, _) = listener.accept().unwrap();
    let flow = redirection.flow_of(&accepted).unwrap().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dialled = runtime.block_on(dial(&flow)).map(|stream| stream.local_addr().unwrap());
    drop(accepted);
    going.join().unwrap();
    Dialled { flow, dialled }
}

#[test]
fn sources_and_devices_are_carried_on_or_the_connection_is_refused() {
    alone(|| {
        interface(
            "d0",
            &["10.9.0.1/24", "10.9.0.2/24", "2001:db8:9::1/64", "2001:db8:9::2/64", "fe80::1/64"],
        );
        let ground = Ground::new();
        let redirection = Redirection::attach(&ground.scope).unwrap();
        let (v4, v6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
        redirection.serve(&v4, Some(&v6)).unwrap();
        // Servers on this host's own addresses: reached over the loopback, from any of its addresses.
        let servers = ["10.9.0.1:0", "[2001:db8:9::1]:0"].map(listen);
        let [port_v4, port_v6] =
            servers.each_ref().map(|server| server.local_addr().unwrap().port().to_string());
        let serve = |ask: &[&str]| serve_one(&ground, &redirection, [&v4, &v6], ask);
        let from = |ask: &[&str]| serve(ask).dialled.unwrap();

        assert_eq!(from(&["bound", "10.9.0.1", &port_v4, "10.9.0.2", "0"]).ip().to_string(), "10.9.0.2");
        let mapped = from(&["bound", "::ffff:10.9.0.1", &port_v4, "::ffff:10.9.0.2", "0"]);
        assert_eq!(mapped.ip().to_string(), "10.9.0.2", "an IPv4 connection, whatever the socket");
        let v6 = from(&["bound", "2001:db8:9::1", &port_v6, "2001:db8:9::2", "0"]);
        assert_eq!(v6.ip().to_string(), "2001:db8:9::2");
        // A port that the client shares is used too; one that it keeps for itself cannot be, the address still is.
        let port = from(&["bound", "10.9.0.1", &port_v4, "10.9.0.2", "901"]);
        assert_eq!(port.to_string(), "10.9.0.2:901");
        let port = from(&["bound", "10.9.0.1", &port_v4, "0.0.0.0", "902"]);
        assert_eq!(port.port(), 902);
        let port = from(&["bound_alone", "10.9.0.1", &port_v4, "10.9.0.2", "903"]);
        assert_eq!((port.ip().to_string(), port.port() == 903), ("10.9.0.2".to_owned(), false));

        // A device: what it does not lead to is not reached another way.
        let loopback = listen("127.0.0.1:0");
        let over_lo =
            serve(&["device", "127.0.0.1", &loopback.local_addr().unwrap().port().to_string(), "lo"]);
        assert!(over_lo.dialled.is_ok(), "{:?}", over_lo.dialled);
        let Dialled { flow, .. } = over_lo;
        let gone = Flow { bound_device: Some(4_000_000), ..flow.clone() };
        let foreign = Flow { bound_source: Some("10.77.0.1:0".parse().unwrap()), ..flow.clone() };
        let elsewhere = Flow { netns_cookie: flow.netns_cookie + 1, ..flow.clone() };
        let dial_alone = |flow: &Flow, cause| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(dial(flow)).expect_err(cause)
        };
        for (flow, cause) in
            [(gone, "device-unavailable"), (foreign, "source-unavailable"), (elsewhere, "other-netns")]
        {
            let error = dial_alone(&flow, cause);
            assert_eq!((error.cause(), error.refused()), (cause, cause), "{error}");
        }
        // Link-local: dialled on the interface that was named.
        let local = listen_link_local();
        let port = local.local_addr().unwrap().port().to_string();
        let line = serve(&["scoped", "fe80::1", &port, "d0"]);
        assert_eq!(line.dialled.unwrap().ip().to_string(), "fe80::1");
    });
}

fn listen_link_local() -> TcpListener {
    let scope = nix::net::if_::if_nametoindex("d0").unwrap();
    TcpListener::bind(std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 0, 0, scope)).unwrap()
}
