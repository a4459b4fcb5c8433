//! Exchanges over UDP: datagrams between one port of the build and one place outside, each with a socket of the
//! node's own.
//!
//! There is no end of such an exchange but that nothing is said any more.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Told;
use super::stack::{Datagram, Flow, Stack};
use crate::limits::{NAT_DATAGRAMS, NAT_EXCHANGE_IDLE, NAT_EXCHANGES, NAT_TASKS, PACKET_BYTES};
use crate::proxy::address::{AddressRange, denied};

/// What there is between two ends.
enum Exchange {
    Open(mpsc::Sender<Vec<u8>>),
    /// It was told why, once.
    Denied,
}

/// The exchanges of a build.
#[derive(Default)]
pub(super) struct Exchanges(HashMap<Flow, Exchange>);

impl Exchanges {
    /// Sends something, or tells the build that it cannot be sent. `told` hears of what comes back.
    pub(super) fn send<T, F>(
        &mut self,
        datagram: Datagram,
        stack: &mut Stack,
        allowed: &Arc<[AddressRange]>,
        (told, tell): (&mpsc::Sender<Told>, &T),
        tasks: &mut JoinSet<()>,
    ) where
        T: Fn(String) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send,
    {
        let flow = datagram.flow;
        match self.0.get(&flow) {
            // Where too much waits it is lost, as UDP may be.
            Some(Exchange::Open(up)) => drop(up.try_send(datagram.bytes)),
            Some(Exchange::Denied) => stack.refuse_datagram(datagram),
            None => {
                self.make_room();
                if self.0.len() >= NAT_EXCHANGES || tasks.len() >= NAT_TASKS {
                    return;
                }
                if let Some(class) = denied(flow.to, allowed) {
                    let (tell, to) = (tell.clone(), flow.to);
                    let text = format!("{to} is denied to builds: the address is {class}");
                    tasks.spawn(async move { tell(text).await });
                    self.0.insert(flow, Exchange::Denied);
                    stack.refuse_datagram(datagram);
                    return;
                }
                let (up, from_build) = mpsc::channel(NAT_DATAGRAMS);
                // There is room for the first.
                drop(up.try_send(datagram.bytes));
                self.0.insert(flow, Exchange::Open(up));
                let told = told.clone();
                tasks.spawn(async move {
                    carry(flow, from_build, &told, NAT_EXCHANGE_IDLE).await;
                    // Where nobody listens, the build has ended.
                    drop(told.send(Told::Silent(flow)).await);
                });
            }
        }
    }

    /// An exchange is over.
    pub(super) fn forget(&mut self, flow: Flow) {
        self.0.remove(&flow);
    }

    /// What is denied is kept only so that it is said once: it makes room for what is not.
    fn make_room(&mut self) {
        if self.0.len() >= NAT_EXCHANGES {
            self.0.retain(|_, exchange| matches!(exchange, Exchange::Open(_)));
        }
    }
}

/// Carries datagrams until neither side has said anything for a while.
async fn carry(
    flow: Flow,
    mut from_build: mpsc::Receiver<Vec<u8>>,
    told: &mpsc::Sender<Told>,
    idle: Duration,
) {
    let any: IpAddr = match flow.to.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // From there alone comes what is taken.
    let connected = async {
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(flow.to).await?;
        Ok::<_, std::io::Error>(socket)
    };
    let Ok(socket) = connected.await else {
        // There is no way there; the build hears nothing, which is what there is to say.
        return;
    };
    // One more than fits, so that what does not is recognised.
    let mut buffer = vec![0; PACKET_BYTES + 1];
    loop {
        tokio::select! {
            datagram = from_build.recv() => match datagram {
                // Lost, as UDP may be: nobody listens there, or the way is not there at the moment.
                Some(bytes) => drop(socket.send(&bytes).await),
                None => return,
            },
            received = socket.recv(&mut buffer) => {
                // An error says that nobody listens there now.
                if let Ok(length) = received {
                    let bytes = buffer[..length].to_vec();
                    if told.send(Told::Datagram(flow, bytes)).await.is_err() {
                        return;
                    }
                }
            }
            () = tokio::time::sleep(idle) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::packet::tests::sent;
    use super::*;
    use crate::limits::PACKETS_AT_ONCE;

    /// Hands datagrams of the build to its exchanges.
    fn send(
        exchanges: &mut Exchanges,
        flows: impl Iterator<Item = Flow>,
        allowed: &[&str],
        tasks: &mut JoinSet<()>,
    ) {
        let allowed: Vec<AddressRange> = allowed.iter().map(|range| range.parse().unwrap()).collect();
        let allowed: Arc<[AddressRange]> = allowed.into();
        let (told, _inbox) = mpsc::channel(1);
        let mut stack = Stack::new(Instant::now(), true);
        for flow in flows {
            stack.packet(sent(flow, b"x"));
            let datagram = stack.take_datagram().unwrap();
            let tell = |_| std::future::ready(());
            exchanges.send(datagram, &mut stack, &allowed, (&told, &tell), tasks);
        }
    }

    fn flows(to: &str, ports: std::ops::Range<u16>) -> impl Iterator<Item = Flow> + use<> {
        let to = to.parse().unwrap();
        ports.map(move |from| Flow { from, to })
    }

    #[tokio::test]
    async fn exchanges_have_a_bound_and_what_is_denied_takes_no_room() {
        // Nobody listens at this port, where nothing can be sent from either.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let here = socket.local_addr().unwrap().to_string();
        let (mut exchanges, mut tasks) = (Exchanges::default(), JoinSet::new());
        let most = u16::try_from(NAT_EXCHANGES).unwrap();
        send(
            &mut exchanges,
            flows("10.0.0.1:9", 1000..1000 + 3 * most),
            &["127.0.0.1"],
            &mut tasks,
        );
        assert!(exchanges.0.len() <= NAT_EXCHANGES);
        // What is said of them has been said.
        while tasks.join_next().await.is_some() {}
        send(
            &mut exchanges,
            flows(&here, 1000..1000 + most + 10),
            &["127.0.0.1"],
            &mut tasks,
        );
        assert_eq!(exchanges.0.len(), NAT_EXCHANGES);
        assert!(
            exchanges
                .0
                .values()
                .all(|exchange| matches!(exchange, Exchange::Open(_)))
        );
        assert!(tasks.len() <= NAT_TASKS);
        exchanges.forget(flows(&here, 1000..1001).next().unwrap());
        send(
            &mut exchanges,
            flows(&here, 5000..5001),
            &["127.0.0.1"],
            &mut tasks,
        );
        assert!(
            exchanges
                .0
                .contains_key(&flows(&here, 5000..5001).next().unwrap())
        );
    }

    #[tokio::test]
    async fn so_many_datagrams_of_an_exchange_wait_and_no_more() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let here = socket.local_addr().unwrap().to_string();
        let (mut exchanges, mut tasks) = (Exchanges::default(), JoinSet::new());
        let flow = flows(&here, 1000..1001).next().unwrap();
        let mut say = |count: usize| {
            send(
                &mut exchanges,
                std::iter::repeat_n(flow, count),
                &["127.0.0.1"],
                &mut tasks,
            );
            match exchanges.0.get(&flow) {
                Some(Exchange::Open(up)) => up.capacity(),
                _ => panic!("it is open"),
            }
        };
        // The task that sends them has not had its turn.
        assert_eq!(say(NAT_DATAGRAMS - 1), 1);
        assert_eq!(say(NAT_DATAGRAMS), 0, "the others are lost");
    }

    #[test]
    fn datagrams_that_nobody_takes_do_not_pile_up() {
        let mut stack = Stack::new(Instant::now(), true);
        let mut taken = 0;
        for flow in flows("192.0.2.1:9", 1000..3000) {
            if stack.has_room() {
                stack.packet(sent(flow, b"x"));
                taken += 1;
            }
        }
        assert_eq!(taken, PACKETS_AT_ONCE);
    }

    #[tokio::test]
    async fn an_exchange_in_which_nothing_is_said_ends() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        let (_up, from_build) = mpsc::channel(1);
        let (told, _inbox) = mpsc::channel(1);
        let (idle, began) = (Duration::from_millis(50), Instant::now());
        let carried = carry(Flow { from: 1, to }, from_build, &told, idle);
        // Far less than it takes without that.
        let ended = tokio::time::timeout(NAT_EXCHANGE_IDLE / 2, carried).await;
        assert!(ended.is_ok() && began.elapsed() >= idle);
    }
}
