// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {Base, Escrow, create, escrowCode, same, signed, vm, yes} from "./Base.sol";

/// @dev trees/settle.tree, trees/settleMany.tree
contract SettleTest is Base {
    function test_settle_paysSeconds_sharesFee() public {
        ILeaseEscrow.Quote memory q = newQuote();
        (q.referrer, q.referrerBps) = (referrer, 2500);
        bytes32 id = open(q, uint128(priceOf(q, 3600)));
        pass(1000);
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = voucher(id, 777, false);
        uint256 claimed = priceOf(q, 777);
        vm.expectEmit();
        emit ILeaseEscrow.LeaseSettled(id, 777, claimed - claimed * 200 / 10_000, claimed * 200 / 10_000);
        escrow.settle(v, signature);
        uint256 fee = claimed * 200 / 10_000;
        ILeaseEscrow.Lease memory l = escrow.lease(id);
        same("seconds", l.servedSeconds, 777);
        same("claimed", l.claimed, claimed);
        same("fee", l.feeTaken, fee);
        same("payee", escrow.credits(address(usdc), payee), claimed - fee);
        same("referrer", escrow.credits(address(usdc), referrer), fee * 2500 / 10_000);
        same("treasury", escrow.credits(address(usdc), treasury), fee - fee * 2500 / 10_000);
        same("provider itself", escrow.credits(address(usdc), provider), 0);
        checkBooks(address(usdc));
    }

    function test_settle_neverBeyondElapsed_nowOrLater() public {
        bytes32 id = openFull();
        pass(100);
        settle(id, 3000);
        same("elapsed", escrow.lease(id).servedSeconds, 100);
        pass(50);
        settle(id, 3000);
        same("the same voucher again", escrow.lease(id).servedSeconds, 150);
    }

    function test_settle_neverBeyondMaxSeconds() public {
        bytes32 id = openFull();
        pass(3900);
        settle(id, 3901);
        same("seconds", escrow.lease(id).servedSeconds, 3600);
        same("all", escrow.totals(address(usdc)).held, 0);
    }

    function test_settle_neverBeyondClosingAt() public {
        bytes32 id = openFull();
        pass(100);
        vm.prank(consumer);
        escrow.requestClose(id);
        pass(1000);
        settle(id, 500);
        same("seconds", escrow.lease(id).servedSeconds, 100);
    }

    function test_settle_afterTheEnd_inTheWindow() public {
        bytes32 id = openFull();
        pass(3900 + WINDOW - 1);
        settle(id, 1234);
        same("seconds", escrow.lease(id).servedSeconds, 1234);
    }

    function test_settle_lowerVoucher_changesNothing() public {
        bytes32 id = openFull();
        pass(200);
        settle(id, 150);
        vm.recordLogs();
        settle(id, 149);
        settle(id, 150);
        same("no event", vm.getRecordedLogs().length, 0);
        same("seconds", escrow.lease(id).servedSeconds, 150);
    }

    function test_settle_badSignature_reverts() public {
        bytes32 id = openFull();
        pass(100);
        ILeaseEscrow.Voucher memory v = ILeaseEscrow.Voucher(id, 50, false);
        bytes memory signature = signed(STRANGER_KEY, escrow.hashVoucher(v));
        expect(abi.encodeWithSelector(ILeaseEscrow.BadSignature.selector, session));
        escrow.settle(v, signature);
        // The provider's own signature opens leases, it does not serve them.
        signature = signed(PROVIDER_KEY, escrow.hashVoucher(v));
        expectBadSignature(session);
        escrow.settle(v, signature);
        // Nor does the consumer's wallet serve as its session key.
        signature = signed(CONSUMER_KEY, escrow.hashVoucher(v));
        expectBadSignature(session);
        escrow.settle(v, signature);
        expectBadSignature(session);
        escrow.settle(v, "");
    }

    /// @dev I8: what the session key signed for another contract, on another chain, or as another message, is no voucher; and
    /// its signature has one spelling.
    function test_settle_signatureOfAnythingElse_reverts() public {
        bytes32 id = openFull();
        pass(100);
        ILeaseEscrow.Voucher memory v = ILeaseEscrow.Voucher(id, 50, false);
        Escrow other = Escrow(create(escrowCode(NETWORK, owner, treasury, WINDOW)));
        (uint8 sv, bytes32 r, bytes32 s) = vm.sign(SESSION_KEY, escrow.hashVoucher(v));
        bytes32 highS = bytes32(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 - uint256(s));
        bytes[6] memory signatures = [
            signed(SESSION_KEY, other.hashVoucher(v)),
            signed(SESSION_KEY, escrow.hashRelease(ILeaseEscrow.Release(id, 50))),
            abi.encodePacked(r, highS, sv == 27 ? uint8(28) : uint8(27)),
            abi.encodePacked(r, bytes32(uint256(s) | (sv == 28 ? 1 << 255 : 0))),
            abi.encodePacked(r, s, sv, uint8(0)),
            abi.encodePacked(r, s, sv - 27)
        ];
        for (uint256 i = 0; i < signatures.length; ++i) {
            expectBadSignature(session);
            escrow.settle(v, signatures[i]);
        }
        uint256 here = vm.getChainId();
        vm.chainId(4242);
        expectBadSignature(session);
        escrow.settle(v, abi.encodePacked(r, s, sv));
        vm.chainId(here);
        escrow.settle(v, abi.encodePacked(r, s, sv));
    }

    /// @dev I8: more seconds, another lease, the other flag: each needs its own signature.
    function test_settle_changedVoucher_reverts(uint32 by) public {
        vm.assume(by != 0);
        bytes32 id = openFull();
        bytes32 other = openFull();
        pass(100);
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = voucher(id, 50, false);
        v.servedSeconds ^= by;
        expect(abi.encodeWithSelector(ILeaseEscrow.BadSignature.selector, session));
        escrow.settle(v, signature);
        v.servedSeconds ^= by;
        v.leaseId = other;
        expect(abi.encodeWithSelector(ILeaseEscrow.BadSignature.selector, session));
        escrow.settle(v, signature);
        v.leaseId = id;
        v.last = true;
        expect(abi.encodeWithSelector(ILeaseEscrow.BadSignature.selector, session));
        escrow.settle(v, signature);
    }

    /// @dev A key stays a key: code that appears at its address later cannot disown its vouchers.
    function test_settle_sessionKeyWithCode_staysAKey() public {
        bytes32 id = openFull();
        pass(100);
        vm.etch(session, hex"60006000fd");
        settle(id, 50);
        same("seconds", escrow.lease(id).servedSeconds, 50);
    }

    function test_settle_unknownOrClosed_reverts() public {
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = voucher(bytes32(uint256(9)), 5, false);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseNotFound.selector, v.leaseId));
        escrow.settle(v, signature);
        bytes32 id = openFull();
        close(id, 0);
        (v, signature) = voucher(id, 5, false);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseIsClosed.selector, id));
        escrow.settle(v, signature);
    }

    function test_settle_lastVoucher_doesNotClose() public {
        bytes32 id = openFull();
        pass(100);
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = voucher(id, 50, true);
        vm.prank(stranger);
        escrow.settle(v, signature);
        yes("open", escrow.lease(id).closeReason == ILeaseEscrow.CloseReason.Open);
    }

    /// @dev I4: however the way there is cut up and shuffled, the sums are those of one settlement.
    function test_settle_inAnyPartsAndOrder_givesTheSame(uint96 price, uint32[8] calldata steps) public {
        ILeaseEscrow.Quote memory q = newQuote();
        q.pricePerGpuHour = uint128(price % 1e9);
        (q.referrer, q.referrerBps) = (referrer, 3333);
        usdc.mint(consumer, 1e12);
        bytes32 id = open(q, uint128(priceOf(q, 3600)));
        pass(3000);
        uint32 most = 0;
        for (uint256 i = 0; i < steps.length; ++i) {
            uint32 s = steps[i] % 3000;
            if (s > most) most = s;
            settle(id, s);
        }
        uint256 claimed = priceOf(q, most);
        uint256 fee = claimed * 200 / 10_000;
        same("claimed", escrow.lease(id).claimed, claimed);
        same("fee", escrow.lease(id).feeTaken, fee);
        same("payee", escrow.credits(address(usdc), payee), claimed - fee);
        same("referrer", escrow.credits(address(usdc), referrer), fee * 3333 / 10_000);
        same("treasury", credit(treasury), fee - fee * 3333 / 10_000);
        checkBooks(address(usdc));
    }

    function test_settle_everySecond_paysTheWholeFee() public {
        ILeaseEscrow.Quote memory q = newQuote();
        (q.pricePerGpuHour, q.gpus) = (100_000, 1);
        bytes32 id = open(q, uint128(priceOf(q, 3600)));
        for (uint32 s = 1; s <= 120; ++s) {
            pass(1);
            settle(id, s);
        }
        same("fee", escrow.lease(id).feeTaken, priceOf(q, 120) * 200 / 10_000);
    }

    function test_settle_nativeToken_hasNoFee() public {
        ILeaseEscrow.Quote memory q = newQuote();
        (q.token, q.pricePerGpuHour) = (address(gpu), 333_333_333_333_333_333);
        bytes32 id = open(q, uint128(priceOf(q, 3600)));
        pass(100);
        settle(id, 99);
        same("payee", escrow.credits(address(gpu), payee), priceOf(q, 99));
        same("fee", escrow.totals(address(gpu)).fee, 0);
        checkBooks(address(gpu));
    }

    // settleMany

    function test_settleMany_skipsTheBad_countsTheGood() public {
        bytes32 one = openFull();
        bytes32 two = openFull();
        bytes32 closed = openFull();
        close(closed, 0);
        pass(100);
        ILeaseEscrow.SignedVoucher[] memory items = new ILeaseEscrow.SignedVoucher[](6);
        (items[0].voucher, items[0].signature) = voucher(one, 40, false);
        (items[1].voucher, items[1].signature) = voucher(bytes32(uint256(77)), 40, false);
        (items[2].voucher, items[2].signature) = voucher(closed, 40, false);
        (items[3].voucher, items[3].signature) = voucher(two, 40, false);
        items[3].voucher.servedSeconds = 41;
        (items[4].voucher, items[4].signature) = voucher(two, 60, false);
        (items[5].voucher, items[5].signature) = voucher(one, 39, false);

        vm.expectEmit();
        emit ILeaseEscrow.SettleSkipped(bytes32(uint256(77)), ILeaseEscrow.Skipped.LeaseNotFound);
        vm.expectEmit();
        emit ILeaseEscrow.SettleSkipped(closed, ILeaseEscrow.Skipped.LeaseClosed);
        vm.expectEmit();
        emit ILeaseEscrow.SettleSkipped(two, ILeaseEscrow.Skipped.BadSignature);
        vm.prank(stranger);
        escrow.settleMany(items);
        same("one", escrow.lease(one).servedSeconds, 40);
        same("two", escrow.lease(two).servedSeconds, 60);
        checkBooks(address(usdc));
    }

    function test_settleMany_ofNothing_isNoError() public {
        escrow.settleMany(new ILeaseEscrow.SignedVoucher[](0));
    }

    /// @dev The same lease twice in a batch is as in two settlements.
    function test_settleMany_sameLeaseTwice_countsTheMost() public {
        bytes32 id = openFull();
        pass(100);
        ILeaseEscrow.SignedVoucher[] memory items = new ILeaseEscrow.SignedVoucher[](3);
        (items[0].voucher, items[0].signature) = voucher(id, 40, false);
        (items[1].voucher, items[1].signature) = voucher(id, 90, true);
        (items[2].voucher, items[2].signature) = voucher(id, 60, false);
        escrow.settleMany(items);
        ILeaseEscrow.Lease memory l = escrow.lease(id);
        same("seconds", l.servedSeconds, 90);
        yes("open", l.closeReason == ILeaseEscrow.CloseReason.Open);
        same("payee", credit(payee), uint256(l.claimed) - l.feeTaken);
        checkBooks(address(usdc));
    }
}
