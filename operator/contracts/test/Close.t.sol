// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {LeaseEscrow} from "../src/LeaseEscrow.sol";
import {Base, same, vm, yes} from "./Base.sol";
import {ListingToken, Wallet1271} from "./Doubles.sol";

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
        expect(abi.encodeWithSelector(ILeaseEscrow.BadSignature.selector, provider));
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
        vm.prank(consumer);
        escrow.requestClose(id);
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
        vm.prank(consumer);
        escrow.requestClose(id);
        pass(1);
        escrow.finalize(id);
        ended(id, ILeaseEscrow.CloseReason.Expired, 0);
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
            abi.encodeWithSelector(
                ILeaseEscrow.NotProviderReason.selector, ILeaseEscrow.CloseReason.ConsumerRequested
            )
        );
        escrow.providerClose(id, ILeaseEscrow.CloseReason.ConsumerRequested);
    }

    // withdraw

    function test_withdraw_paysOnce_toWhereIsAsked() public {
        bytes32 id = openFull();
        pass(100);
        close(id, 100);
        uint256 credit = escrow.credits(address(usdc), payee);
        vm.prank(payee);
        same("amount", escrow.withdraw(address(usdc), stranger), credit);
        same("received", usdc.balanceOf(stranger), credit);
        same("record", escrow.withdrawn(address(usdc), payee), credit);
        vm.prank(payee);
        expect(abi.encodeWithSelector(ILeaseEscrow.NothingToWithdraw.selector, address(usdc), payee));
        escrow.withdraw(address(usdc), stranger);
        checkBooks(address(usdc));
    }

    /// @dev I12: whom a token refuses harms nobody else, and loses nothing.
    function test_withdraw_ofARefusedReceiver_harmsOnlyItself() public {
        ListingToken token = new ListingToken();
        token.mint(consumer, 1e12);
        vm.prank(consumer);
        token.approve(address(escrow), type(uint256).max);
        vm.prank(owner);
        escrow.setToken(address(token), true, 200);
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = address(token);
        bytes32 id = open(q, 340_000);
        token.list(payee, true);
        token.list(treasury, true);
        pass(100);
        close(id, 100);
        vm.prank(consumer);
        escrow.withdraw(address(token), consumer);
        uint256 credit = escrow.credits(address(token), payee);
        vm.prank(payee);
        expect(abi.encodeWithSignature("Error(string)", "listed"));
        escrow.withdraw(address(token), payee);
        same("still there", escrow.credits(address(token), payee), credit);
        checkBooks(address(token));
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
    }

    /// @dev I5: no pause and no disallowed token blocks a way out. I11: nor does a new fee reach an open lease.
    function test_pauseAndDisallow_blockNoExit() public {
        bytes32[5] memory ids = [openFull(), openFull(), openFull(), openFull(), openFull()];
        vm.prank(owner);
        escrow.setOpensPaused(true);
        vm.prank(owner);
        escrow.setToken(address(usdc), false, 500);
        pass(100);
        settle(ids[0], 50);
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
        expect(why);
        new LeaseEscrow(NETWORK, owner, address(0), WINDOW);
        expect(why);
        new LeaseEscrow(NETWORK, owner, treasury, 0);
        expect(why);
        new LeaseEscrow(NETWORK, owner, treasury, 31 days);
    }

    function test_views_ofNoLease_areEmpty() public view {
        ILeaseEscrow.Lease memory l = escrow.lease(bytes32(uint256(1)));
        yes("empty", l.openedAt == 0 && l.consumer == address(0));
        bytes32[] memory ids = new bytes32[](3);
        same("three", escrow.leases(ids).length, 3);
    }
}
