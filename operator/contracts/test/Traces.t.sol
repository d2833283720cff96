// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {Escrow, Token, create, escrowCode, newGpu, newUsdc, receiveAuthorization, signed, vm} from "./Base.sol";

/// @dev Trace, step, and what was not as the model has it: accepted, the reason of the refusal, or what the call left behind.
error Diverged(uint256 trace, uint256 step, string what, bytes answer);

/// @dev I14: plays traces that the model in TypeScript (operator/core/money/model.ts) has played before, and compares which
/// calls are refused and why, and every lease, credit, sum and sponsorship after each. `npm run test:contracts` writes them
/// (test/support/escrow-traces.ts), a trace a line, and names the files' common beginning in GPULEASE_TRACES.
contract TracesTest {
    uint256 constant START = 1_800_000_000;
    bytes32 constant NETWORK = keccak256("gpulease");
    uint256 constant ACTORS = 9;
    // Numbers of actors, as in `actors` of escrow-traces.ts; the first is nobody.
    uint256 constant OWNER = 1;
    uint256 constant PROVIDER = 3;
    uint256 constant FEE_RECIPIENT = 6;

    Escrow escrow;
    Token usdc;
    Token gpu;
    address[] actors;
    mapping(address => uint256) numberOf;
    bytes4[] refusals;

    /// @dev Ids in the order in which they were wished for, for the last look.
    bytes32[] ids;

    function setUp() public {
        vm.warp(START);
        actors.push(address(0));
        for (uint256 i = 1; i < ACTORS; ++i) {
            actors.push(vm.addr(keyOf(i)));
            numberOf[actors[i]] = i;
        }
        escrow = Escrow(create(escrowCode(NETWORK, actors[OWNER], actors[FEE_RECIPIENT], 300)));
        usdc = newUsdc();
        gpu = newGpu(address(this), type(uint128).max);
        vm.prank(actors[OWNER]);
        escrow.setToken(address(usdc), true, 200);
        vm.prank(actors[OWNER]);
        escrow.setToken(address(gpu), true, 0);
        for (uint256 i = 1; i < ACTORS; ++i) {
            usdc.mint(actors[i], 1e24);
            require(gpu.transfer(actors[i], 1e36));
            vm.prank(actors[i]);
            usdc.approve(address(escrow), type(uint256).max);
            vm.prank(actors[i]);
            gpu.approve(address(escrow), type(uint256).max);
        }
        refusals = [
            bytes4(0),
            ILeaseEscrow.OpensArePaused.selector,
            ILeaseEscrow.NotAuthorized.selector,
            ILeaseEscrow.WrongNetwork.selector,
            ILeaseEscrow.QuoteExpired.selector,
            ILeaseEscrow.QuoteIsCancelled.selector,
            ILeaseEscrow.InvalidTerms.selector,
            ILeaseEscrow.TokenNotAllowed.selector,
            ILeaseEscrow.BadSignature.selector,
            ILeaseEscrow.DepositOutOfRange.selector,
            ILeaseEscrow.LeaseExists.selector,
            ILeaseEscrow.LeaseNotFound.selector,
            ILeaseEscrow.LeaseIsClosed.selector,
            ILeaseEscrow.LeaseIsOpen.selector,
            ILeaseEscrow.AlreadyClosing.selector,
            ILeaseEscrow.NotLastVoucher.selector,
            ILeaseEscrow.NotProviderReason.selector,
            ILeaseEscrow.NotFinalizableBefore.selector,
            ILeaseEscrow.NothingToWithdraw.selector,
            ILeaseEscrow.NothingToRefund.selector,
            ILeaseEscrow.FeeTooHigh.selector
        ];
    }

    // Four, so that as many processors can play.

    function test_I14_modelIsContract_1() public {
        playAll(".1");
    }

    function test_I14_modelIsContract_2() public {
        playAll(".2");
    }

    function test_I14_modelIsContract_3() public {
        playAll(".3");
    }

    function test_I14_modelIsContract_4() public {
        playAll(".4");
    }

    function playAll(string memory suffix) private {
        string memory file = vm.envOr("GPULEASE_TRACES", string(""));
        if (bytes(file).length == 0) return vm.skip(true);
        file = string.concat(file, suffix);
        uint256 untouched = vm.snapshotState();
        uint256 played = 0;
        // A call of its own, so that each trace begins with empty memory.
        while (this.playNext(file)) {
            ++played;
            vm.revertToState(untouched);
        }
        require(played > 0, "an empty file of traces");
    }

    // ------------------------------------------------------------------------------------------------------- reading

    /// @dev Where in the trace we are.
    struct Reader {
        bytes data;
        uint256 position;
    }

    function take(Reader memory r, uint256 size) private pure returns (uint256 value) {
        bytes memory data = r.data;
        uint256 position = r.position;
        require(position + size <= data.length, "the trace ends too early");
        assembly ("memory-safe") {
            value := shr(sub(256, mul(size, 8)), mload(add(add(data, 32), position)))
        }
        r.position = position + size;
    }

    function takeActor(Reader memory r) private view returns (address) {
        return actors[take(r, 1)];
    }

    function takeToken(Reader memory r) private view returns (address) {
        uint256 token = take(r, 1);
        return token == 0 ? address(usdc) : token == 1 ? address(gpu) : actors[7];
    }

    function takeLease(Reader memory r) private view returns (bytes32) {
        address consumer = takeActor(r);
        return escrow.leaseIdOf(consumer, bytes32(take(r, 1)));
    }

    function takeVoucher(Reader memory r) private returns (ILeaseEscrow.Voucher memory v, bytes memory signature) {
        v.leaseId = takeLease(r);
        v.servedSeconds = uint32(take(r, 4));
        v.last = take(r, 1) == 1;
        signature = sign(take(r, 1), escrow.hashVoucher(v));
    }

    function keyOf(uint256 actor) private pure returns (uint256) {
        return 0xac7012 + actor;
    }

    function sign(uint256 actor, bytes32 digest) private returns (bytes memory) {
        return signed(keyOf(actor), digest);
    }

    // ------------------------------------------------------------------------------------------------------- playing

    /// @dev False when there are no more.
    function playNext(string calldata file) external returns (bool) {
        require(msg.sender == address(this));
        string memory line = vm.readLine(file);
        if (bytes(line).length == 0) return false;
        Reader memory r = Reader(vm.parseBytes(line), 0);
        uint256 name = take(r, 4);
        uint256 now_ = START;
        for (uint256 number = 0;; ++number) {
            uint256 kind = take(r, 1);
            if (kind == 255) break;
            now_ += take(r, 4);
            vm.warp(now_);
            step(r, kind, name, number);
        }
        bytes memory words;
        for (uint256 i = 0; i < ids.length; ++i) {
            words = bytes.concat(words, leaseWords(ids[i]));
        }
        words = bytes.concat(words, tokenWords(address(usdc)), tokenWords(address(gpu)));
        if (uint256(sha256(words)) != take(r, 32)) revert Diverged(name, 0, "the end", words);
        require(r.position == r.data.length, "the trace is longer than its end");
        return true;
    }

    /// @dev What a call touched, to be looked at after it.
    struct Touched {
        bytes32[] leases;
        address token;
        bytes words;
    }

    function step(Reader memory r, uint256 kind, uint256 name, uint256 number) private {
        address from = takeActor(r);
        uint256 expected = take(r, 1);
        Touched memory touched;
        bytes memory data;
        if (kind < 2) (data, touched) = opening(r, kind == 1);
        else if (kind < 12) (data, touched) = moving(r, kind, from);
        else (data, touched) = governing(r, kind);

        vm.prank(from);
        (bool ok, bytes memory answer) = address(escrow).call(data);
        if (ok != (expected == 0)) revert Diverged(name, number, "accepted", answer);
        if (!ok) {
            // Ownership is OpenZeppelin's, with a name of its own.
            bytes4 why = bytes4(answer);
            if (why == bytes4(keccak256("OwnableUnauthorizedAccount(address)"))) {
                why = ILeaseEscrow.NotAuthorized.selector;
            }
            if (why != refusals[expected]) revert Diverged(name, number, "refusal", answer);
            return;
        }
        bytes memory words = touched.words;
        for (uint256 i = 0; i < touched.leases.length; ++i) {
            bytes32 id = touched.leases[i];
            words = bytes.concat(words, leaseWords(id));
            address token = escrow.lease(id).token;
            if (token != address(0)) words = bytes.concat(words, tokenWords(token));
        }
        if (touched.token != address(0)) words = bytes.concat(words, tokenWords(touched.token));
        if (kind == 12) {
            words = abi.encode(uint256(escrow.quoteCancelled(from, uint256(bytes32(touched.words))) ? 1 : 0));
        }
        if (kind == 13) words = abi.encode(escrow.tokenRule(address(usdc)));
        if (kind == 14) words = abi.encode(escrow.opensPaused());
        if (uint64(bytes8(sha256(words))) != take(r, 8)) revert Diverged(name, number, "outcome", words);
    }

    function opening(Reader memory r, bool authorized) private returns (bytes memory, Touched memory touched) {
        ILeaseEscrow.Quote memory q;
        q.consumer = takeActor(r);
        q.leaseRef = bytes32(take(r, 1));
        q.networkId = take(r, 1) == 1 ? NETWORK : bytes32(uint256(0x99));
        q.token = takeToken(r);
        (q.payee, q.referrer) = (takeActor(r), takeActor(r));
        q.referrerBps = uint16(take(r, 2));
        q.pricePerGpuHour = uint128(take(r, 16));
        (q.gpus, q.minSeconds, q.maxSeconds) = (uint32(take(r, 4)), uint32(take(r, 4)), uint32(take(r, 4)));
        q.startTimeoutSeconds = uint32(take(r, 4));
        q.expiresAt = uint64(take(r, 8));
        q.nonce = take(r, 1);
        q.provider = actors[PROVIDER];
        bytes memory signature = sign(take(r, 1), escrow.hashQuote(q));
        address signer = takeActor(r);
        uint128 deposit = uint128(take(r, 16));

        bytes32 id = escrow.leaseIdOf(q.consumer, q.leaseRef);
        touched.leases = one(id);
        bool known = false;
        for (uint256 i = 0; i < ids.length; ++i) {
            if (ids[i] == id) known = true;
        }
        if (!known) ids.push(id);
        if (!authorized) return (abi.encodeCall(ILeaseEscrow.open, (q, signature, signer, deposit)), touched);

        ILeaseEscrow.Authorization memory a = receiveAuthorization(
            keyOf(numberOf[q.consumer]),
            usdc,
            address(escrow),
            deposit,
            escrow.authorizationNonce(escrow.hashQuote(q), signer)
        );
        return (abi.encodeCall(ILeaseEscrow.openWithAuthorization, (q, signature, signer, deposit, a)), touched);
    }

    function moving(Reader memory r, uint256 kind, address from)
        private
        returns (bytes memory data, Touched memory touched)
    {
        ILeaseEscrow.Voucher memory v;
        bytes memory signature;
        if (kind == 2) {
            touched.leases = one(takeLease(r));
            data = abi.encodeCall(ILeaseEscrow.topUp, (touched.leases[0], uint128(take(r, 16))));
        } else if (kind == 3 || kind == 5) {
            (v, signature) = takeVoucher(r);
            touched.leases = one(v.leaseId);
            data = kind == 3
                ? abi.encodeCall(ILeaseEscrow.settle, (v, signature))
                : abi.encodeCall(ILeaseEscrow.close, (v, signature));
        } else if (kind == 4) {
            ILeaseEscrow.SignedVoucher[] memory items = new ILeaseEscrow.SignedVoucher[](take(r, 1));
            touched.leases = new bytes32[](items.length);
            for (uint256 i = 0; i < items.length; ++i) {
                (items[i].voucher, items[i].signature) = takeVoucher(r);
                touched.leases[i] = items[i].voucher.leaseId;
            }
            data = abi.encodeCall(ILeaseEscrow.settleMany, (items));
        } else if (kind == 6) {
            ILeaseEscrow.Release memory release = ILeaseEscrow.Release(takeLease(r), uint32(take(r, 4)));
            take(r, 1);
            touched.leases = one(release.leaseId);
            signature = sign(take(r, 1), escrow.hashRelease(release));
            data = abi.encodeCall(ILeaseEscrow.closeWithRelease, (release, signature));
        } else if (kind == 11) {
            touched.token = takeToken(r);
            data = abi.encodeCall(ILeaseEscrow.withdraw, (touched.token, from));
        } else {
            bytes32 id = takeLease(r);
            touched.leases = one(id);
            if (kind == 7) data = abi.encodeCall(ILeaseEscrow.requestClose, (id));
            if (kind == 8) {
                data = abi.encodeCall(ILeaseEscrow.providerClose, (id, ILeaseEscrow.CloseReason(take(r, 1))));
            }
            if (kind == 9) data = abi.encodeCall(ILeaseEscrow.finalize, (id));
            if (kind == 10) data = abi.encodeCall(ILeaseEscrow.refundSponsor, (id, take(r, 1)));
        }
    }

    function governing(Reader memory r, uint256 kind) private view returns (bytes memory data, Touched memory touched) {
        if (kind == 12) {
            uint256 nonce = take(r, 1);
            touched.words = abi.encode(nonce);
            data = abi.encodeCall(ILeaseEscrow.cancelQuote, (nonce));
        } else if (kind == 13) {
            address token = takeToken(r);
            bool allowed = take(r, 1) == 1;
            data = abi.encodeCall(ILeaseEscrow.setToken, (token, allowed, uint16(take(r, 2))));
        } else {
            data = abi.encodeCall(ILeaseEscrow.setOpensPaused, (take(r, 1) == 1));
        }
    }

    function one(bytes32 id) private pure returns (bytes32[] memory list) {
        list = new bytes32[](1);
        list[0] = id;
    }

    // ------------------------------------------------------------------------------------------------------- looking

    function leaseWords(bytes32 id) private view returns (bytes memory words) {
        ILeaseEscrow.Lease memory l = escrow.lease(id);
        if (l.openedAt == 0) return abi.encode(uint256(0));
        uint256 pieces = escrow.sponsorships(id);
        words = bytes.concat(
            abi.encode(
                l.openedAt,
                numberOf[l.consumer],
                numberOf[l.signer],
                numberOf[l.provider],
                numberOf[l.payee],
                l.token == address(gpu) ? 1 : 0
            ),
            abi.encode(numberOf[l.referrer], l.referrerBps, l.feeBps, l.gpus, l.maxSeconds),
            abi.encode(l.pricePerGpuHour, l.deposit, l.servedSeconds, l.claimed, l.feeTaken, l.refunded),
            abi.encode(l.endsAt, l.closingAt, l.closeReason, pieces)
        );
        for (uint256 i = 0; i < pieces; ++i) {
            ILeaseEscrow.Sponsorship memory piece = escrow.sponsorship(id, i);
            words = bytes.concat(words, abi.encode(numberOf[piece.sponsor], piece.amount, piece.refundable));
        }
    }

    function tokenWords(address token) private view returns (bytes memory words) {
        words = abi.encode(escrow.totals(token));
        for (uint256 i = 1; i < ACTORS; ++i) {
            words = bytes.concat(words, abi.encode(escrow.credits(token, actors[i])));
        }
    }
}
