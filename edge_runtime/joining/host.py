"""A host of devices joins a run, serves it to its end, and goes.

Said in the order in which it happens: knock, load, make keys, say hello, wait for the others,
start, carry out orders. A host that was started again has its keys and its journal of the run, and
catches up before it takes part.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from edge_runtime.agent import DeviceAgent
from edge_runtime.control.host_end import HostEnd
from edge_runtime.control.nats_link import NatsLink, Reply
from edge_runtime.control.over_nats import NatsHost, token
from edge_runtime.forward import OnnxForward
from edge_runtime.guard.guard import Guard
from edge_runtime.guard.keys import KEYS_FILE, HostKeys
from edge_runtime.joining import messages
from edge_runtime.joining.host_settings import HostSettings
from edge_runtime.joining.in_step import InStep
from edge_runtime.joining.journal import Journal
from edge_runtime.joining.messages import (
    Agreed,
    Hello,
    JoiningMessage,
    Knock,
    RadioNote,
    Refused,
    RunTerms,
    Start,
    here_subject,
    knock_subject,
    server_subject,
)
from edge_runtime.joining.own_radio import OwnRadio
from edge_runtime.joining.preparation import (
    check_policies,
    check_radios,
    load_prompts,
    make_keys,
    open_radios,
    open_the_same,
    own_radio,
    uplink_of,
    was_in,
)
from edge_runtime.joining.rehearsal import PlayedAir
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import MAX_ROWS, choose_max_rows, keep_prefixes
from edge_runtime.protocol.errors import (
    EdgeError,
    LinkError,
    LinkRenewedError,
    WireError,
)
from edge_runtime.protocol.members import Member
from edge_runtime.protocol.orders import AtHand
from edge_runtime.tasks import label_token_ids, load_tokenizer
from edge_runtime.virtual_device import VirtualDevice
from radio.errors import RadioError
from radio.self_closing import silence_each

_ASK_S = 20.0
_KNOCK_AGAIN_S = 0.5
_LOOK_S = 0.1
_LOOKS_TO_A_WORD = 5
_LOOKS_TO_A_NOTE = 100
_LOOK_FOR_SERVER_S = 2.0
_T = TypeVar("_T", bound=JoiningMessage)


def join(
    link: NatsLink,
    settings: HostSettings,
    say: Callable[[str], None] = lambda text: None,
    is_over: threading.Event | None = None,
) -> None:
    """Take part in the run that a server on this broker has, to its end.

    Args:
        link: to the broker; it stays its owner's.
        settings: of the host.
        say: told how it goes, a line each.
        is_over: set from another thread, and the host goes when the order at hand is done.

    Raises:
        LinkError: no server within the time, or it does not answer.
        EdgeError: something does not fit; the message says what is here and what was wanted.
    """
    token("--name", settings.host)
    is_over = threading.Event() if is_over is None else is_over
    terms = _knock(link, settings, is_over)
    if terms is None:
        return
    say(f"run {terms.run_id}: {terms.task.name}, {len(settings.data)} devices here")
    with contextlib.ExitStack() as opened:
        host = opened.enter_context(contextlib.closing(_Host(link, settings, terms, say)))
        host.say_hello()
        say("on the list; waiting for the others")
        host.serve(is_over, say)
    say("the run is over")


class _Host:
    """Everything that a host has loaded and made for a run."""

    def __init__(
        self, link: NatsLink, settings: HostSettings, terms: RunTerms, say: Callable[[str], None]
    ) -> None:
        self._link, self._settings, self._terms = link, settings, terms
        bundle = open_the_same(link, settings, terms, say)
        self._prompts = load_prompts(settings.data, bundle, terms)
        check_policies(settings, terms, self._prompts)
        check_radios(settings, terms)
        self._weights = ParameterStore.from_bundle(bundle, terms.trainable, settings.workers)
        self._weights.check_perturbation_scale(terms.example.perturbation_scale)
        self._forward = OnnxForward(
            bundle,
            self._weights,
            label_token_ids=label_token_ids(terms.task, load_tokenizer(bundle.tokenizer_path)),
            num_workers=settings.workers,
        )
        self._own_radios: dict[int, OwnRadio] = {}
        self._underflows: Counter[int] = Counter()
        # Made when everything else is there: nothing that fails before leaves any behind.
        self._keys: HostKeys | None = None
        self._journal: Journal | None = None
        self._has_started = self._has_ended = False
        self._agent_here: DeviceAgent | None = None
        self._end_here: HostEnd | None = None
        self._instance = secrets.token_hex(8)
        self._said = self._challenge = secrets.token_hex(8)
        self._members: dict[str, Member] = {}
        link.on_lost = self._suspect
        self._guard: Guard | None = None
        self._there_s = self._looked_s = time.monotonic()
        self._is_server_there = True
        self._say = say
        self._max_rows = MAX_ROWS
        if terms.is_private:
            vocab_size = int(bundle.manifest.architecture["vocab_size"])
            self._max_rows = choose_max_rows(
                self._forward, vocab_size=vocab_size, max_tokens=terms.max_tokens
            )
        keep_prefixes(
            self._forward, settings.state, settings.prefix_cache_mb * 10**6, terms.max_tokens
        )
        # Before hello: no order is missed.
        self._starts: queue.SimpleQueue[tuple[bytes, Reply | None]] = queue.SimpleQueue()
        self._subject = f"pz.{token('run', terms.run_id)}"
        link.subscribe(
            f"{self._subject}.start.{settings.host}",
            lambda subject, data, reply: self._take_start(data, reply),
        )
        self._orders = NatsHost(link, terms.run_id, settings.host)
        self._radios = open_radios(settings, terms)

    def say_hello(self) -> None:
        """Be on the list of the run."""
        was_here = was_in(self._settings, self._terms)
        self._has_started = was_here and (self._settings.state / KEYS_FILE).exists()
        self._keys = make_keys(self._settings, self._terms, was_here)
        if self._terms.is_private:
            self._open_journal()  # with the keys: whoever finds them knows of which run they are
        owners = zip(self._prompts.items(), self._keys.private_randoms(), strict=True)
        members = {
            name: Member(len(prompts), own.commitment, own.commit_to_data(prompts.digest()))
            for (name, prompts), own in owners
        }
        self._members = members
        self._link.be_at(self._here(self._instance))
        reason = self._hello()
        if reason is None:
            raise LinkError(f"run {self._terms.run_id}: its server is not there any more.")
        if reason:
            raise LinkError(f"run {self._terms.run_id}: {reason}")
        # From here on the name is taken, as long as this process lives: the broker knows.
        self._link.be_at(self._here("any"))

    def _hello(self) -> str | None:
        """Say who is here, with the challenge of now; why not, None if there is nobody to say."""
        self._said = self._challenge
        where = f"{socket.gethostname()}, process {os.getpid()}"
        host, run_id = self._settings.host, self._terms.run_id
        hello = Hello(host, run_id, self._members, self._instance, where, self._said)
        reply = _ask(self._link, f"{self._subject}.hello.{host}", hello)
        return None if reply is None else messages.refusal_of(reply)

    def _here(self, instance: str) -> str:
        return here_subject(self._terms.run_id, self._settings.host, instance)

    def serve(self, is_over: threading.Event, say: Callable[[str], None]) -> None:
        """Wait for the start; then carry out orders to the end."""
        for look in itertools.count():
            if is_over.is_set():
                return
            self._check_somebody_is_there()
            if look % _LOOKS_TO_A_WORD == 0:  # a server that was started again knows nothing of it
                self._orders.say_waiting(self._challenge)
            try:
                data, reply = self._starts.get(timeout=_LOOK_S)
            except queue.Empty:
                self._hello_again()
                continue
            at_hand = AtHand()
            try:
                journal = self._open_journal()
                start = _as(messages.decode(data), Start)
                self._check_is_of_now(start)
                agent = self._agent(start, at_hand)
            except LinkRenewedError as error:
                _answer(reply, Refused(str(error), type(error).__name__))
                continue
            except EdgeError as error:
                _answer(reply, Refused(str(error)))
                raise
            self._has_started, self._agent_here = True, agent
            _answer(reply, Agreed())
            watcher = threading.Thread(target=self._stop_when, args=(is_over,), daemon=True)
            try:
                in_step = InStep(self._link, agent, journal)
                with contextlib.suppress(LinkError):  # what it lacks it takes with its next order
                    in_step.come_back()
                taken = agent.num_steps
                say(f"in step after {taken} rounds" if taken else "all are there")
                watcher.start()
                end = HostEnd(agent, at_hand, in_step)
                end.begin_after(start.epoch, start.sequence)
                self._end_here = end
                if start.challenge != self._challenge:  # lost again since
                    end.suspect()
                self._orders.serve(end)
                self._has_ended = end.has_ended
            finally:
                is_over.set()
                if watcher.ident is not None:
                    watcher.join()
                agent.close()
            if not self._has_ended:
                self._check_somebody_is_there()
            return

    def _hello_again(self) -> None:
        """Where the link was lost before the start, that has to be for the challenge of now."""
        if self._said != self._challenge and self._link.is_up:
            with contextlib.suppress(LinkError):  # the next time
                if reason := self._hello():
                    raise EdgeError(f"run {self._terms.run_id}: {reason}")

    def close(self) -> None:
        """Let weights and threads go; keys that nothing was drawn with, too. Idempotent."""
        are_kept = self._terms.is_private and self._terms.simulated_seed is None
        if self._keys is not None and are_kept and not self._has_started:
            HostKeys.destroy(self._settings.state)
        if self._journal is not None:
            self._journal.close()
            if self._has_ended or not self._has_started:
                self._journal.remove()
        self._forward.close()
        self._weights.close()
        silence_each([radio.close for radio in self._radios.values()])

    def _open_journal(self) -> Journal:
        if self._journal is None:
            self._journal = Journal(self._settings.journal, self._terms.run_id)
        return self._journal

    def _stop_when(self, is_over: threading.Event) -> None:
        for look in itertools.count():
            if is_over.wait(_LOOK_S) or self._is_nobody_there():
                break
            if look % _LOOKS_TO_A_WORD == 0:
                self._orders.say_idle(self._challenge)
            if look % _LOOKS_TO_A_NOTE == 0:
                self._tell_of_radios()
        self._orders.stop()

    def _tell_of_radios(self) -> None:
        """For whoever looks after them; by the clock, whatever is being computed."""
        for device, radio in self._own_radios.items():
            with contextlib.suppress(RadioError, LinkError):  # the next time
                health = radio.take_health()
                if health is not None:
                    self._underflows[device] += health.num_underflows
                    self._link.publish(
                        f"{self._subject}.radio.{self._settings.host}",
                        messages.encode(
                            RadioNote(device, health.temperature_c, self._underflows[device])
                        ),
                    )

    def _take_start(self, data: bytes, reply: Reply | None) -> None:
        """The start; or that of a server that was started again. In the link's thread."""
        if self._agent_here is None:
            self._starts.put((data, reply))
        else:
            self._orders.between_orders(lambda: self._start_again(data, reply))

    def _suspect(self) -> None:
        """The link was lost: what comes by it from now on may be of before. In its thread."""
        self._challenge = secrets.token_hex(8)
        for radio in self._own_radios.values():
            radio.end_now()
        if self._end_here is not None:
            self._end_here.suspect()

    def _check_is_of_now(self, start: Start) -> None:
        if start.challenge != self._challenge:
            raise LinkRenewedError("start: not for this host's challenge, which is a newer one.")

    def _start_again(self, data: bytes, reply: Reply | None) -> None:
        agent, end = self._agent_here, self._end_here
        assert agent is not None and end is not None
        try:
            start = _as(messages.decode(data), Start)
            self._check_is_of_now(start)
            if sorted(start.indices.values()) != list(agent.device_indices):
                raise WireError(f"start: devices {start.indices}, here {agent.device_indices}.")
            if self._guard is not None:
                self._guard.ledger.check_holds(start.heard)
            agent.begin_again()
            end.begin_after(start.epoch, start.sequence)
        except EdgeError as error:
            _answer(reply, Refused(str(error), type(error).__name__))
            return
        _answer(reply, Agreed())

    def _is_nobody_there(self) -> bool:
        """Whether broker or server are gone for longer than it takes to start one again."""
        now_s = time.monotonic()
        if self._link.is_up and now_s - self._looked_s > _LOOK_FOR_SERVER_S:
            was_there, self._looked_s = self._is_server_there, now_s
            self._is_server_there = self._link.is_anybody_at(server_subject(self._terms.run_id))
            if was_there and not self._is_server_there:
                self._say("the server is gone; waiting for it to go on with the run")
        if self._link.is_up and self._is_server_there:
            self._there_s = now_s
        return now_s - self._there_s > self._settings.gone_s

    def _check_somebody_is_there(self) -> None:
        if self._is_nobody_there():
            who = "server" if self._link.is_up else "broker"
            raise LinkError(
                f"the {who} has been gone for {self._settings.gone_s:g} s; the run is not over, "
                f"and {self._settings.state} keeps what this host has released: join again when "
                "it is back. Nothing is sent."
            )

    def _agent(self, start: Start, at_hand: AtHand) -> DeviceAgent:
        if set(start.indices) != set(self._prompts):
            raise WireError(
                f"start: for devices {sorted(start.indices)}, here are {sorted(self._prompts)}."
            )
        assert self._keys is not None
        air = PlayedAir(self._link, f"{self._subject}.air.{self._settings.host}", at_hand)
        own = {
            name: own_radio(radio, air, start.indices[name], self._terms)
            for name, radio in self._radios.items()
        }
        self._own_radios.update({start.indices[name]: radio for name, radio in own.items()})
        owners = zip(self._prompts.items(), self._keys.private_randoms(), strict=True)
        devices = [
            VirtualDevice(
                device_index=start.indices[name],
                owner=name,
                prompts=prompts,
                private_random=private_random,
                uplink=uplink_of(air, start.indices[name], self._terms.air, own.get(name)),
                policy=self._settings.policies.get(name) if self._terms.is_private else None,
            )
            for (name, prompts), private_random in owners
        ]
        agent = DeviceAgent(
            host=self._settings.host,
            run_id=self._terms.run_id,
            devices=sorted(devices, key=lambda device: device.device_index),
            store=self._weights,
            forward=self._forward,
            max_rows=self._max_rows,
        )
        if self._terms.is_private:
            self._guard = Guard(self._settings.state, agent.policies)
            agent.guard_with(self._guard)
            self._guard.ledger.check_holds(start.heard)
        return agent


def _knock(link: NatsLink, settings: HostSettings, is_over: threading.Event) -> RunTerms | None:
    """What the server on this broker has; it may come later than its devices. None at the end."""
    until_s = time.monotonic() + settings.wait_s
    while not is_over.is_set():
        reply = _ask(link, knock_subject(settings.host), Knock(settings.host))
        if isinstance(reply, Refused):
            raise LinkError(reply.reason)
        if reply is not None:
            return _as(reply, RunTerms)
        if time.monotonic() > until_s:
            raise LinkError(
                f"no server has come to this broker in {settings.wait_s:g} s. Start one: "
                "pairzero serve."
            )
        is_over.wait(_KNOCK_AGAIN_S)
    return None


def _ask(link: NatsLink, subject: str, message: JoiningMessage) -> JoiningMessage | None:
    reply = link.request(subject, messages.encode(message), _ASK_S)
    return None if reply is None else messages.decode(reply)


def _answer(reply: Reply | None, message: JoiningMessage) -> None:
    if reply is not None:
        reply(messages.encode(message))


def _as(message: JoiningMessage, kind: type[_T]) -> _T:
    if not isinstance(message, kind):
        raise WireError(f"got {type(message).__name__}, wanted {kind.__name__}.")
    return message
