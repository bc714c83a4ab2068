//! How sessions begin, change hands and end.

use std::sync::Arc;

use super::session::Session;
use super::wills::Will;
use super::{Attached, Detached, Effects, Hub, Leave, Link, Ticket, reason};
use crate::broker::acl::ClientAcl;
use crate::broker::codec::{Connect, Version};
use crate::broker::tree::Target;
use crate::broker::{Identity, topic};

impl Hub {
    /// Makes or continues the session of a client whose right to connect was checked. An earlier connection with the same
    /// client id is closed first [MQTT-3.1.4-3].
    pub fn attach(
        &mut self,
        connect: &Connect,
        identity: Arc<Identity>,
        acl: ClientAcl,
        link: Arc<Link>,
        now: u64,
        fx: &mut Effects,
    ) -> Attached {
        let client_id = identity.client_id.clone();
        let old = self.by_client.get(&client_id).copied();
        if let Some(index) = old {
            self.take_over(index, now, fx);
        }
        let expiry = self.granted_expiry(connect);
        let kept = old
            .filter(|&index| !connect.clean_start && self.session(index).is_some_and(|s| s.continues_for(&identity)));
        if let (Some(index), None) = (old, kept) {
            self.end_session(index, now);
        }
        self.wills.cancel(&client_id);
        self.epoch += 1;
        let index = kept.unwrap_or_else(|| self.new_session(&client_id));
        let window = connect.receive_maximum.min(self.limits.inflight);
        let will = connect.will.as_ref().map(|will| Will::new(will, identity.clone()));
        let epoch = self.epoch;
        let session = self.sessions[index].as_mut().expect("the session was found or made above");
        session.attach(connect, identity, acl, link, epoch, expiry, window, will);
        self.drop_forbidden(index);
        self.stats.connects += 1;
        self.flush_late(now, fx);
        Attached { ticket: Ticket { index, epoch }, present: kept.is_some(), expiry }
    }

    /// The rules may have changed since the session subscribed.
    fn drop_forbidden(&mut self, index: usize) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        let Some(acl) = &session.acl else { return };
        let allowed = |filter: &str| topic::split_share(filter).is_ok_and(|(_, inner)| acl.may_subscribe(inner));
        let forbidden: Vec<String> = session.subscriptions.keys().filter(|f| !allowed(f)).cloned().collect();
        for filter in forbidden {
            tracing::info!(client = %session.client_id, filter, "subscription of an earlier connection is no longer allowed");
            session.unsubscribe(&filter);
            if let Ok((group, inner)) = topic::split_share(&filter) {
                self.tree.remove(inner, group, Target::Session(index));
            }
        }
    }

    /// Looks at every client again: `judge` gives the rules that it has from now on, or `None` for one that must go. What
    /// such a client does before its connection is closed is denied, and nothing of its session stays.
    pub fn revise(&mut self, judge: impl Fn(&Identity) -> Option<ClientAcl>, now: u64, fx: &mut Effects) {
        for index in 0..self.sessions.len() {
            let Some(session) = self.sessions[index].as_mut() else { continue };
            // The broker's own probe has no address, and rules of nobody.
            if session.identity.address.is_none() {
                continue;
            }
            let acl = judge(&session.identity);
            let link = session.link.clone().filter(|_| acl.is_none());
            match (&acl, &link) {
                (None, None) => {
                    tracing::info!(client = %session.client_id, "the session of a client that may not connect any more ends");
                    self.end_session(index, now);
                    continue;
                }
                (None, Some(link)) => {
                    tracing::info!(client = %session.client_id, "disconnected: this client may not connect any more");
                    link.close(reason::NOT_AUTHORISED);
                    fx.wake.push(link.clone());
                    session.expiry = 0;
                }
                (Some(_), _) => {}
            }
            session.acl = Some(acl.unwrap_or_else(ClientAcl::nothing));
            self.drop_forbidden(index);
        }
        self.flush_late(now, fx);
    }

    /// Seconds the session may outlive its connection: what was asked for, within the limit.
    fn granted_expiry(&self, connect: &Connect) -> u32 {
        let most = u32::try_from(self.limits.session_expiry.as_secs()).unwrap_or(u32::MAX);
        match connect.version {
            Version::V5 => connect.session_expiry.min(most),
            Version::V311 if connect.clean_start => 0,
            Version::V311 => most,
        }
    }

    fn take_over(&mut self, index: usize, now: u64, fx: &mut Effects) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        if let Some(link) = session.link.take() {
            link.close(reason::TAKEN_OVER);
            fx.wake.push(link);
        }
        self.high.remove(&index);
        if let Some(will) = session.will.take() {
            if will.delay == 0 {
                self.late.push(will.publish(now));
            } else {
                // Kept until the caller knows whether the session ends (published) or continues (cancelled).
                self.wills.schedule(session.client_id.clone(), will, now, u32::MAX);
            }
        }
    }

    fn new_session(&mut self, client_id: &Arc<str>) -> usize {
        let index = self.free.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            self.sessions.len() - 1
        });
        self.sessions[index] = Some(Box::new(Session::new(client_id.clone())));
        self.by_client.insert(client_id.clone(), index);
        index
    }

    pub(super) fn session(&self, index: usize) -> Option<&Session> {
        self.sessions.get(index)?.as_deref()
    }

    pub(super) fn connected(&mut self, ticket: Ticket) -> Result<&mut Session, Detached> {
        let session = self.sessions.get_mut(ticket.index).and_then(|s| s.as_deref_mut()).ok_or(Detached)?;
        if session.epoch == ticket.epoch && session.link.is_some() { Ok(session) } else { Err(Detached) }
    }

    /// The connection is over. The session stays if it is to outlive it.
    pub fn detach(&mut self, ticket: Ticket, leave: Leave, now: u64, fx: &mut Effects) {
        let Ok(session) = self.connected(ticket) else { return };
        session.link = None;
        session.away_since = now;
        if let Leave::Clean { expiry: Some(seconds) } = leave
            && session.expiry > 0
        {
            session.expiry = seconds.min(session.expiry);
        }
        let stays = session.expiry > 0;
        let will = session.will.take().filter(|_| leave == Leave::Lost);
        let (client_id, expiry) = (session.client_id.clone(), session.expiry);
        self.high.remove(&ticket.index);
        if let Some(will) = will {
            let delay = will.delay.min(expiry);
            if delay == 0 {
                self.late.push(will.publish(now))
            } else {
                self.wills.schedule(client_id, will, now, delay)
            }
        }
        if stays {
            self.trim_offline(ticket.index);
            self.bound_sessions(now);
        } else {
            self.end_session(ticket.index, now);
        }
        self.flush_late(now, fx);
    }

    /// A client that is away gets QoS 1 and 2 only [MQTT 5, 4.1].
    fn trim_offline(&mut self, index: usize) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        let (before, retained_before) = (session.queued_bytes, session.waiting_retained());
        session.drop_unacknowledged_kind();
        self.queued_bytes -= before - session.queued_bytes;
        self.queued_retained -= retained_before - session.waiting_retained();
    }

    fn bound_sessions(&mut self, now: u64) {
        let away = || {
            self.sessions
                .iter()
                .enumerate()
                .filter_map(|(i, s)| Some((i, s.as_ref()?)))
                .filter(|(_, s)| s.link.is_none())
        };
        if away().count() <= self.limits.sessions {
            return;
        }
        if let Some((index, session)) = away().min_by_key(|(_, s)| s.away_since) {
            tracing::warn!(client = %session.client_id, limit = self.limits.sessions,
                "too many persistent sessions: the one away longest is discarded, its client starts clean");
            self.stats.sessions_discarded += 1;
            self.end_session(index, now);
        }
    }

    /// Removes a session with everything that belongs to it. A will that waits for its delay is published now.
    pub(super) fn end_session(&mut self, index: usize, now: u64) {
        let Some(session) = self.sessions[index].take() else { return };
        self.free.push(index);
        self.high.remove(&index);
        self.by_client.remove(&session.client_id);
        for filter in session.subscriptions.keys() {
            if let Ok((group, inner)) = topic::split_share(filter) {
                self.tree.remove(inner, group, Target::Session(index));
            }
        }
        self.queued_bytes -= session.queued_bytes;
        self.queued_retained -= session.waiting_retained();
        if self.queued_bytes <= self.limits.total_queue_bytes / 2 {
            self.total_high_since = None;
        }
        self.stats.dropped += session.waiting() as u64;
        if let Some(message) = self.wills.take(&session.client_id, now) {
            self.late.push(message);
        }
    }
}
