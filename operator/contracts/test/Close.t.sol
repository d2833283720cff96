// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {Base, Escrow, Token, create, escrowCode, same, signed, vm, yes} from "./Base.sol";
import {ListingUSDC, RebasingToken, TaxedToken, Wallet1271} from "./Doubles.sol";

/// @dev trees/close.tree, closeWithRelease, requestClose, providerClose, finalize, withdraw, govern
contract CloseTest is Base {
    function ended(bytes32 id, ILeaseEscrow.CloseReason reason, uint256 seconds_) private view {
        ILeaseEscrow.Lease memory l = escrow.lease(id);
        uint256 claimed = seconds_ * PRICE * 2 / 3600;
        yes("reason", l.closeReason == reason);
        same("seconds", l.servedSeconds, seconds_);
        same("claimed", l.claimed, claimed);
        same("refunded", l.refunded, l.deposit - claimed);
        same("held", escrow.totals(address(usdc)).held, 0);
        checkBooks(address(usdc));
    }

    function test_close_byProvider_settlesAndRefunds() public {
        bytes32 id = openFull();
        pass(100);
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = voucher(id, 80, true);
        uint256 claimed = 80 * uint256(PRICE) * 2 / 3600;
        uint256 fee = claimed * 200 / 10_000;
        vm.expectEmit();
        emit ILeaseEscrow.LeaseClosed(
            id, provider, ILeaseEscrow.CloseReason.LastVoucher, 80, claimed - fee, fee, 680_000 - claimed
        );
        vm.prank(provider);
        escrow.close(v, signature);
        ended(id, ILeaseEscrow.CloseReason.LastVoucher, 80);
        same("stopped", escrow.lease(id).closingAt, START + 100);
        same("consumer", escrow.credits(address(usdc), consumer), 680_000 - claimed);
    }

    function test_close_byPayee() public {
        bytes32 id = openFull();
        pass(100);
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = voucher(id, 80, true);
        vm.prank(payee);
        escrow.close(v, signature);
        ended(id, ILeaseEscrow.CloseReason.LastVoucher, 80);
    }

    function test_close_lowerThanSettled_keepsWhatWasSettled() public {
        bytes32 id = openFull();
        pass(100);
        settle(id, 90);
        close(id, 10);
        ended(id, ILeaseEscrow.CloseReason.LastVoucher, 90);
    }

    function test_close_refusals() public {
        bytes32 id = openFull();
        pass(100);
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = voucher(id, 80, true);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.NotAuthorized.selector, consumer));
        escrow.close(v, signature);
        v.servedSeconds = 81;
        vm.prank(provider);
        expect(abi.encodeWithSelector(ILeaseEscrow.BadSignature.selector, session));
        escrow.close(v, signature);
        (v, signature) = voucher(id, 80, false);
        vm.prank(provider);
        expect(abi.encodeWithSelector(ILeaseEscrow.NotLastVoucher.selector, id));
        escrow.close(v, signature);
        close(id, 80);
        (v, signature) = voucher(id, 80, true);
        vm.prank(provider);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseIsClosed.selector, id));
        escrow.close(v, signature);
        v.leaseId = bytes32(uint256(7));
        vm.prank(provider);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseNotFound.selector, v.leaseId));
        escrow.close(v, signature);
    }

    function test_close_seconds_neverBeyondElapsedTermOrDeposit() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, uint128(priceOf(q, 60)));
        bytes32 longest = openFull();
        pass(100);
        close(id, 3000);
        ILeaseEscrow.Lease memory l = escrow.lease(id);
        same("elapsed", l.servedSeconds, 100);
        same("deposit", l.claimed, priceOf(q, 60));
        same("nothing back", l.refunded, 0);
        pass(3801);
        close(longest, 4000);
        l = escrow.lease(longest);
        same("term", l.servedSeconds, 3600);
        same("stopped at the end", l.closingAt, START + 3900);
        checkBooks(address(usdc));
    }

    function test_close_afterTheConsumerAsked_countsUntilThen() public {
        bytes32 id = openFull();
        pass(100);
        vm.prank(consumer);
        escrow.requestClose(id);
        pass(100);
        close(id, 190);
        ended(id, ILeaseEscrow.CloseReason.LastVoucher, 100);
        same("stopped", escrow.lease(id).closingAt, START + 100);
    }

    function test_close_sharesTheFee() public {
        ILeaseEscrow.Quote memory q = newQuote();
        (q.referrer, q.referrerBps) = (referrer, 3333);
        bytes32 id = open(q, uint128(priceOf(q, 3600)));
        pass(1000);
        settle(id, 333);
        close(id, 777);
        uint256 fee = priceOf(q, 777) * 200 / 10_000;
        same("payee", credit(payee), priceOf(q, 777) - fee);
        same("referrer", credit(referrer), fee * 3333 / 10_000);
        same("treasury", credit(treasury), fee - fee * 3333 / 10_000);
        ended(id, ILeaseEscrow.CloseReason.LastVoucher, 777);
    }

    // closeWithRelease

    function test_closeWithRelease_paysWhatTheProviderAsks() public {
        bytes32 id = openFull();
        pass(100);
        (ILeaseEscrow.Release memory r, bytes memory signature) = release(id, 42);
        vm.prank(consumer);
        escrow.closeWithRelease(r, signature);
        ended(id, ILeaseEscrow.CloseReason.Released, 42);
    }

    function test_closeWithRelease_notLessThanSettled_notMoreThanElapsed() public {
        bytes32 id = openFull();
        pass(100);
        settle(id, 60);
        (ILeaseEscrow.Release memory r, bytes memory signature) = release(id, 42);
        vm.prank(consumer);
        escrow.closeWithRelease(r, signature);
        ended(id, ILeaseEscrow.CloseReason.Released, 60);

        uint256 again = block.timestamp;
        id = openFull();
        vm.warp(again + 30);
        (r, signature) = release(id, 3000);
        vm.prank(consumer);
        escrow.closeWithRelease(r, signature);
        same("elapsed", escrow.lease(id).servedSeconds, 30);
    }

    function test_closeWithRelease_refusals() public {
        bytes32 id = openFull();
        (ILeaseEscrow.Release memory r, bytes memory signature) = release(id, 0);
        vm.prank(provider);
        expect(abi.encodeWithSelector(ILeaseEscrow.NotAuthorized.selector, provider));
        escrow.closeWithRelease(r, signature);
        signature = signed(SESSION_KEY, escrow.hashRelease(r));
        vm.prank(consumer);
        expectBadSignature(provider);
        escrow.closeWithRelease(r, signature);
    }

    /// @dev I8: fewer seconds, another lease, another message, another contract or chain: each needs its own signature.
    function test_closeWithRelease_signatureOfAnythingElse_reverts() public {
        bytes32 id = openFull();
        bytes32 other = openFull();
        pass(100);
        settle(other, 90);
        Escrow elsewhere = Escrow(create(escrowCode(NETWORK, owner, treasury, WINDOW)));
        ILeaseEscrow.Release memory r = ILeaseEscrow.Release(id, 5);
        bytes[4] memory signatures = [
            signed(PROVIDER_KEY, escrow.hashRelease(ILeaseEscrow.Release(id, 6))),
            signed(PROVIDER_KEY, escrow.hashRelease(ILeaseEscrow.Release(other, 5))),
            signed(PROVIDER_KEY, escrow.hashVoucher(ILeaseEscrow.Voucher(id, 5, false))),
            signed(PROVIDER_KEY, elsewhere.hashRelease(r))
        ];
        for (uint256 i = 0; i < signatures.length; ++i) {
            vm.prank(consumer);
            expectBadSignature(provider);
            escrow.closeWithRelease(r, signatures[i]);
        }
        bytes memory signature = signed(PROVIDER_KEY, escrow.hashRelease(r));
        vm.chainId(4242);
        vm.prank(consumer);
        expectBadSignature(provider);
        escrow.closeWithRelease(r, signature);
    }

    function test_closeWithRelease_unknownOrClosed_reverts() public {
        (ILeaseEscrow.Release memory r, bytes memory signature) = release(bytes32(uint256(9)), 5);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseNotFound.selector, r.leaseId));
        escrow.closeWithRelease(r, signature);
        bytes32 id = openFull();
        close(id, 0);
        (r, signature) = release(id, 0);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseIsClosed.selector, id));
        escrow.closeWithRelease(r, signature);
    }

    function test_closeWithRelease_ofAContractProvider() public {
        Wallet1271 wallet = new Wallet1271();
        ILeaseEscrow.Quote memory q = newQuote();
        q.provider = address(wallet);
        wallet.accept(escrow.hashQuote(q));
        vm.prank(consumer);
        bytes32 id = escrow.open(q, "", session, 340_000);
        ILeaseEscrow.Release memory r = ILeaseEscrow.Release(id, 0);
        wallet.accept(escrow.hashRelease(r));
        vm.prank(consumer);
        escrow.closeWithRelease(r, "");
        same("all back", escrow.credits(address(usdc), consumer), 340_000);
    }

    // requestClose, finalize

    function test_requestClose_stopsTheClock_leavesTheWindow() public {
        bytes32 id = openFull();
        pass(100);
        vm.expectEmit();
        emit ILeaseEscrow.LeaseCloseRequested(id, consumer, START + 100);
        vm.prank(consumer);
        escrow.requestClose(id);
        same("closing", escrow.lease(id).closingAt, START + 100);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.AlreadyClosing.selector, id));
        escrow.requestClose(id);
        pass(WINDOW - 1);
        settle(id, 3000);
        expect(abi.encodeWithSelector(ILeaseEscrow.NotFinalizableBefore.selector, START + 100 + WINDOW));
        escrow.finalize(id);
        pass(1);
        vm.prank(stranger);
        escrow.finalize(id);
        ended(id, ILeaseEscrow.CloseReason.ConsumerRequested, 100);
        same("stopped", escrow.lease(id).closingAt, START + 100);
    }

    function test_requestClose_byAnother_reverts() public {
        bytes32 id = openFull();
        vm.prank(provider);
        expect(abi.encodeWithSelector(ILeaseEscrow.NotAuthorized.selector, provider));
        escrow.requestClose(id);
    }

    /// @dev I6: nobody can put off the end.
    function test_requestClose_afterTheEnd_delaysNothing() public {
        bytes32 id = openFull();
        pass(3900 + WINDOW - 1);
        vm.expectEmit();
        emit ILeaseEscrow.LeaseCloseRequested(id, consumer, START + 3900);
        vm.prank(consumer);
        escrow.requestClose(id);
        same("billing stopped at the end", escrow.lease(id).closingAt, START + 3900);
        pass(1);
        escrow.finalize(id);
        ended(id, ILeaseEscrow.CloseReason.Expired, 0);
    }

    function test_requestClose_inTheLastSecond_isTheEnd() public {
        bytes32 id = openFull();
        pass(3900);
        vm.prank(consumer);
        escrow.requestClose(id);
        pass(WINDOW);
        escrow.finalize(id);
        ended(id, ILeaseEscrow.CloseReason.Expired, 0);
        id = openFull();
        pass(3899);
        vm.prank(consumer);
        escrow.requestClose(id);
        pass(WINDOW - 1);
        expect(abi.encodeWithSelector(ILeaseEscrow.NotFinalizableBefore.selector, vm.getBlockTimestamp() + 1));
        escrow.finalize(id);
        pass(1);
        escrow.finalize(id);
        ended(id, ILeaseEscrow.CloseReason.ConsumerRequested, 0);
    }

    function test_requestClose_unknownOrClosed_reverts() public {
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseNotFound.selector, bytes32(uint256(9))));
        escrow.requestClose(bytes32(uint256(9)));
        bytes32 id = openFull();
        close(id, 0);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseIsClosed.selector, id));
        escrow.requestClose(id);
    }

    function test_finalize_afterTheEnd_byAnyone() public {
        bytes32 id = openFull();
        pass(500);
        settle(id, 400);
        vm.warp(START + 3900 + WINDOW - 1);
        expect(abi.encodeWithSelector(ILeaseEscrow.NotFinalizableBefore.selector, START + 3900 + WINDOW));
        escrow.finalize(id);
        pass(1);
        vm.prank(stranger);
        escrow.finalize(id);
        ended(id, ILeaseEscrow.CloseReason.Expired, 400);
        same("stopped", escrow.lease(id).closingAt, START + 3900);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseIsClosed.selector, id));
        escrow.finalize(id);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseNotFound.selector, bytes32(uint256(9))));
        escrow.finalize(bytes32(uint256(9)));
    }

    // providerClose

    function test_providerClose_givesUpTheRest() public {
        bytes32 id = openFull();
        pass(100);
        settle(id, 10);
        vm.prank(provider);
        escrow.providerClose(id, ILeaseEscrow.CloseReason.ProviderCapacityLost);
        ended(id, ILeaseEscrow.CloseReason.ProviderCapacityLost, 10);
    }

    function test_providerClose_refusals() public {
        bytes32 id = openFull();
        vm.prank(payee);
        expect(abi.encodeWithSelector(ILeaseEscrow.NotAuthorized.selector, payee));
        escrow.providerClose(id, ILeaseEscrow.CloseReason.ProviderOther);
        vm.prank(provider);
        expect(
            abi.encodeWithSelector(ILeaseEscrow.NotProviderReason.selector, ILeaseEscrow.CloseReason.ConsumerRequested)
        );
        escrow.providerClose(id, ILeaseEscrow.CloseReason.ConsumerRequested);
        vm.prank(provider);
        escrow.providerClose(id, ILeaseEscrow.CloseReason.ProviderUnpaid);
        vm.prank(provider);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseIsClosed.selector, id));
        escrow.providerClose(id, ILeaseEscrow.CloseReason.ProviderUnpaid);
        vm.prank(provider);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseNotFound.selector, bytes32(uint256(9))));
        escrow.providerClose(bytes32(uint256(9)), ILeaseEscrow.CloseReason.ProviderUnpaid);
    }

    // withdraw

    function test_withdraw_paysOnce_toWhereIsAsked() public {
        bytes32 id = openFull();
        pass(100);
        close(id, 100);
        uint256 amount = credit(payee);
        vm.expectEmit();
        emit ILeaseEscrow.Withdrawn(address(usdc), payee, stranger, amount);
        vm.prank(payee);
        same("amount", escrow.withdraw(address(usdc), stranger), amount);
        same("received", usdc.balanceOf(stranger), amount);
        same("record", escrow.withdrawn(address(usdc), payee), amount);
        same("sum", escrow.totals(address(usdc)).withdrawn, amount);
        vm.prank(payee);
        expect(abi.encodeWithSelector(ILeaseEscrow.NothingToWithdraw.selector, address(usdc), payee));
        escrow.withdraw(address(usdc), payee);
        checkBooks(address(usdc));

        id = openFull();
        pass(10);
        close(id, 10);
        uint256 more = credit(payee);
        vm.prank(payee);
        escrow.withdraw(address(usdc), payee);
        same("record of both", escrow.withdrawn(address(usdc), payee), amount + more);
        checkBooks(address(usdc));
    }

    function test_withdraw_toWhereItWouldBeLost_reverts() public {
        bytes32 id = openFull();
        close(id, 0);
        uint256 amount = credit(consumer);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.BadReceiver.selector, address(0)));
        escrow.withdraw(address(usdc), address(0));
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.BadReceiver.selector, address(escrow)));
        escrow.withdraw(address(usdc), address(escrow));
        same("still there", credit(consumer), amount);
    }

    /// @dev I12.
    function test_withdraw_ofARefusedReceiver_harmsOnlyItself() public {
        ListingUSDC token = new ListingUSDC();
        fund(Token(address(token)), consumer, 1e12);
        allow(token, 200);
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = address(token);
        bytes32 id = open(q, 340_000);
        token.list(payee, true);
        token.list(treasury, true);
        pass(100);
        close(id, 100);
        vm.prank(consumer);
        escrow.withdraw(address(token), consumer);
        uint256 amount = escrow.credits(address(token), payee);
        vm.prank(payee);
        expect(abi.encodeWithSignature("Error(string)", "listed"));
        escrow.withdraw(address(token), payee);
        same("still there", escrow.credits(address(token), payee), amount);
        checkBooks(address(token));
        // Money that a token lets go nowhere else can still go where its owner says.
        vm.prank(payee);
        expect(abi.encodeWithSignature("Error(string)", "listed"));
        escrow.withdraw(address(token), treasury);
        vm.prank(payee);
        escrow.withdraw(address(token), stranger);
        same("received", token.balanceOf(stranger), amount);
    }

    /// @dev A refused consumer or provider can neither keep the other from closing nor lose by waiting.
    function test_close_ofRefusedParties_works() public {
        ListingUSDC token = new ListingUSDC();
        fund(Token(address(token)), consumer, 1e12);
        allow(token, 200);
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = address(token);
        bytes32 id = open(q, 340_000);
        token.list(consumer, true);
        token.list(provider, true);
        token.list(payee, true);
        token.list(treasury, true);
        pass(100);
        settle(id, 50);
        close(id, 100);
        same("claimed", escrow.lease(id).claimed, priceOf(q, 100));
        token.list(consumer, false);
        vm.prank(consumer);
        escrow.withdraw(address(token), consumer);
    }

    /// @dev A token whose balances shrink pays whom it can, and leaves the money of other tokens alone.
    function test_withdraw_ofAShrinkingToken_harmsNoOtherToken() public {
        RebasingToken token = new RebasingToken();
        fund(Token(address(token)), consumer, 1e12);
        allow(token, 200);
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = address(token);
        bytes32 shrinking = open(q, 680_000);
        bytes32 sound = openFull();
        pass(1800);
        token.rebase(50);
        close(shrinking, 1800);
        close(sound, 1800);
        vm.prank(consumer);
        escrow.withdraw(address(token), consumer);
        vm.prank(payee);
        (bool ok,) = address(escrow).call(abi.encodeCall(ILeaseEscrow.withdraw, (address(token), payee)));
        yes("there is no more of it", !ok);
        for (uint256 i = 0; i < 3; ++i) {
            vm.prank([consumer, payee, treasury][i]);
            escrow.withdraw(address(usdc), stranger);
        }
        same("all of the other", usdc.balanceOf(stranger), 680_000);
        // What comes again goes to who is owed.
        token.mint(address(escrow), 1e6);
        vm.prank(payee);
        escrow.withdraw(address(token), payee);
    }

    /// @dev A token that begins to tax transfers taxes those who withdraw, not the escrow.
    function test_withdraw_ofATokenThatBeginsToTax_harmsNobodyElse() public {
        TaxedToken token = new TaxedToken();
        token.tax(false);
        fund(Token(address(token)), consumer, 1e12);
        allow(token, 200);
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = address(token);
        bytes32 id = open(q, 340_000);
        pass(100);
        token.tax(true);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.WrongAmountReceived.selector, 1000, 900));
        escrow.topUp(id, 1000);
        close(id, 100);
        for (uint256 i = 0; i < 3; ++i) {
            vm.prank([consumer, payee, treasury][i]);
            escrow.withdraw(address(token), stranger);
        }
        same("empty", token.balanceOf(address(escrow)), 0);
    }

    // govern

    function test_owner_canDoNoMoreThanAllowAndPauseOpens() public {
        vm.prank(stranger);
        expect(abi.encodeWithSignature("OwnableUnauthorizedAccount(address)", stranger));
        escrow.setToken(address(usdc), true, 0);
        vm.prank(stranger);
        expect(abi.encodeWithSignature("OwnableUnauthorizedAccount(address)", stranger));
        escrow.setOpensPaused(true);
        vm.prank(owner);
        expect(abi.encodeWithSelector(ILeaseEscrow.FeeTooHigh.selector, 501, 500));
        escrow.setToken(address(usdc), true, 501);
        vm.expectEmit();
        emit ILeaseEscrow.TokenRuleChanged(address(usdc), true, 500);
        vm.prank(owner);
        escrow.setToken(address(usdc), true, 500);
        ILeaseEscrow.TokenRule memory rule = escrow.tokenRule(address(usdc));
        yes("the rule", rule.allowed && rule.feeBps == 500);
    }

    /// @dev Ownership is handed over in two steps, so that it cannot be lost to a wrong address; and can be given up.
    function test_owner_handsOverInTwoSteps() public {
        vm.prank(owner);
        escrow.transferOwnership(stranger);
        yes("not yet", escrow.owner() == owner && escrow.pendingOwner() == stranger);
        vm.prank(stranger);
        escrow.acceptOwnership();
        yes("now", escrow.owner() == stranger);
        vm.prank(owner);
        expect(abi.encodeWithSignature("OwnableUnauthorizedAccount(address)", owner));
        escrow.setOpensPaused(true);
        vm.prank(stranger);
        escrow.renounceOwnership();
        yes("nobody's", escrow.owner() == address(0));
        openFull();
    }

    /// @dev I5: no pause and no disallowed token blocks a way out. I11: nor does a new fee reach an open lease.
    function test_pauseAndDisallow_blockNoExit() public {
        bytes32[6] memory ids = [openFull(), openFull(), openFull(), openFull(), openFull(), open(newQuote(), 340_000)];
        vm.prank(owner);
        escrow.setOpensPaused(true);
        vm.prank(owner);
        escrow.setToken(address(usdc), false, 500);
        pass(100);
        settle(ids[0], 50);
        fund(usdc, stranger, 1e6);
        same("fee of the opening", escrow.lease(ids[0]).feeTaken, 50 * uint256(PRICE) * 2 / 3600 * 200 / 10_000);
        close(ids[0], 60);
        (ILeaseEscrow.Release memory r, bytes memory signature) = release(ids[1], 60);
        vm.prank(consumer);
        escrow.closeWithRelease(r, signature);
        vm.prank(provider);
        escrow.providerClose(ids[2], ILeaseEscrow.CloseReason.ProviderMaintenance);
        vm.prank(consumer);
        escrow.requestClose(ids[3]);
        pass(3900 + WINDOW);
        escrow.finalize(ids[3]);
        escrow.finalize(ids[4]);
        vm.prank(stranger);
        escrow.topUp(ids[5], 1000);
        escrow.finalize(ids[5]);
        escrow.refundSponsor(ids[5], 0);
        vm.prank(stranger);
        escrow.withdraw(address(usdc), stranger);
        vm.prank(consumer);
        escrow.withdraw(address(usdc), consumer);
        vm.prank(payee);
        escrow.withdraw(address(usdc), payee);
        vm.prank(treasury);
        escrow.withdraw(address(usdc), treasury);
        same("empty", usdc.balanceOf(address(escrow)), 0);
    }

    function test_deploy_refusesSenselessSettings() public {
        bytes memory why = abi.encodeWithSelector(ILeaseEscrow.InvalidTerms.selector);
        bytes[3] memory codes = [
            escrowCode(NETWORK, owner, address(0), WINDOW),
            escrowCode(NETWORK, owner, treasury, 0),
            escrowCode(NETWORK, owner, treasury, 30 days + 1)
        ];
        for (uint256 i = 0; i < codes.length; ++i) {
            expect(why);
            this.deploy(codes[i]);
        }
        Escrow longest = Escrow(create(escrowCode(NETWORK, owner, treasury, 30 days)));
        same("window", longest.claimWindow(), 30 days);
        yes(
            "settings", longest.feeRecipient() == treasury && longest.networkId() == NETWORK && longest.owner() == owner
        );
        yes("not paused", !longest.opensPaused());
    }

    function deploy(bytes calldata code) external returns (address) {
        return create(code);
    }

    function test_views_ofNoLease_areEmpty() public view {
        ILeaseEscrow.Lease memory l = escrow.lease(bytes32(uint256(1)));
        yes("empty", l.openedAt == 0 && l.consumer == address(0));
        bytes32[] memory ids = new bytes32[](3);
        same("three", escrow.leases(ids).length, 3);
    }
}
