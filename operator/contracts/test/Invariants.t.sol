// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {LeaseEscrow} from "../src/LeaseEscrow.sol";
import {MockUSDC} from "../src/tokens/MockUSDC.sol";
import {Base, same, vm, yes} from "./Base.sol";

/// @dev Everyone does everything, in any order, while time passes. What a call may not do is checked right after it; what
/// must always hold is checked by the invariants below.
contract Handler is Base {
    bytes32[] public ids;
    address[] accounts;
    mapping(bytes32 => uint256) public signedMost;
    mapping(bytes32 => uint256) public feeAtOpen;
    mapping(bytes32 => ILeaseEscrow.Lease) private seen;
    uint256 public exits;

    constructor() {
        setUp();
        accounts = [consumer, payee, provider, treasury, referrer];
    }

    // ------------------------------------------------------------------------------------------------------- actions

    function openSome(uint96 price, uint8 gpus, uint32 max, uint32 covered, bool native, bool referred) external {
        if (ids.length >= 24) return;
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = native ? address(gpu) : address(usdc);
        q.pricePerGpuHour = uint128(price % (native ? 1e19 : 1e7));
        q.gpus = uint32(gpus) % 16 + 1;
        q.maxSeconds = max % 7200 + 60;
        q.minSeconds = 1;
        if (referred) (q.referrer, q.referrerBps) = (referrer, uint16(price % 10_001));
        uint128 deposit = uint128(priceOf(q, covered % q.maxSeconds + 1));
        bytes memory signature = signedQuote(q);
        uint256 fee = escrow.tokenRule(q.token).feeBps;
        bool mayOpen = !escrow.opensPaused() && escrow.tokenRule(q.token).allowed;
        vm.prank(consumer);
        try escrow.open(q, signature, session, deposit) returns (bytes32 id) {
            yes("opened only when allowed", mayOpen);
            ids.push(id);
            feeAtOpen[id] = fee;
        } catch {
            yes("refused only when not allowed", !mayOpen);
        }
        observe();
    }

    function topUpSome(uint256 which, uint96 amount) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        uint256 max = uint256(l.maxSeconds) * l.pricePerGpuHour * l.gpus / 3600;
        amount = uint96(amount % (max + 1));
        bool fits = l.closeReason == ILeaseEscrow.CloseReason.Open && amount != 0 && l.deposit + amount <= max;
        vm.prank(consumer);
        try escrow.topUp(id, amount) {
            yes("topped up only within the maximum", fits);
        } catch {
            yes("refused only beyond it", !fits);
        }
        observe();
    }

    function settleSome(uint256 which, uint32 seconds_) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = sign(id, seconds_ % 9000, false);
        try escrow.settle(v, signature) {
            yes("settled only while open", l.closeReason == ILeaseEscrow.CloseReason.Open);
        } catch {
            yes("refused only when closed", l.closeReason != ILeaseEscrow.CloseReason.Open);
        }
        observe();
    }

    function settleForged(uint256 which, uint32 seconds_, uint32 by) external {
        (bytes32 id,) = pick(which);
        if (id == 0 || by == 0) return;
        ILeaseEscrow.Voucher memory v = ILeaseEscrow.Voucher(id, seconds_, false);
        bytes memory signature = signed(SESSION_KEY, escrow.hashVoucher(v));
        v.servedSeconds ^= by;
        try escrow.settle(v, signature) {
            yes("a forged voucher settles", false);
        } catch {}
        observe();
    }

    function settleThree(uint256 which, uint32 seconds_) external {
        if (ids.length == 0) return;
        ILeaseEscrow.SignedVoucher[] memory items = new ILeaseEscrow.SignedVoucher[](3);
        for (uint256 i = 0; i < 3; ++i) {
            bytes32 id = ids[(which % 1000 + i) % ids.length];
            (items[i].voucher, items[i].signature) = sign(id, uint32((uint256(seconds_) + i * 7) % 9000), i == 1);
        }
        items[2].signature[3] ^= 0x01;
        escrow.settleMany(items);
        observe();
    }

    function closeSome(uint256 which, uint32 seconds_) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = sign(id, seconds_ % 9000, true);
        vm.prank(which % 2 == 0 ? provider : payee);
        try escrow.close(v, signature) {
            ++exits;
        } catch {
            yes("refused only when closed", l.closeReason != ILeaseEscrow.CloseReason.Open);
        }
        observe();
    }

    function releaseSome(uint256 which, uint32 seconds_) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        seconds_ %= 9000;
        (ILeaseEscrow.Release memory r, bytes memory signature) = release(id, seconds_);
        if (seconds_ > signedMost[id] && l.closeReason == ILeaseEscrow.CloseReason.Open) signedMost[id] = seconds_;
        vm.prank(consumer);
        try escrow.closeWithRelease(r, signature) {
            ++exits;
        } catch {
            yes("refused only when closed", l.closeReason != ILeaseEscrow.CloseReason.Open);
        }
        observe();
    }

    function requestSome(uint256 which) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        vm.prank(consumer);
        try escrow.requestClose(id) {}
        catch {
            yes("refused only once", l.closingAt != 0);
        }
        observe();
    }

    function giveUpSome(uint256 which, uint8 reason) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0 || which % 4 != 0) return;
        vm.prank(provider);
        try escrow.providerClose(id, ILeaseEscrow.CloseReason(reason % 5 + 5)) {
            ++exits;
        } catch {
            yes("refused only when closed", l.closeReason != ILeaseEscrow.CloseReason.Open);
        }
        observe();
    }

    /// @dev I5, I6: once the window is over nothing keeps anyone from finalizing, no pause and nobody's silence.
    function finalizeSome(uint256 which) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        uint256 stop = l.closingAt != 0 && l.closingAt < l.endsAt ? l.closingAt : l.endsAt;
        bool due = l.closeReason == ILeaseEscrow.CloseReason.Open && vm.getBlockTimestamp() >= stop + WINDOW;
        vm.prank(stranger);
        try escrow.finalize(id) {
            yes("finalized only when due", due);
            ++exits;
        } catch {
            yes("refused only when not due", !due);
        }
        observe();
    }

    function withdrawSome(uint256 who, bool native) external {
        address account = accounts[who % accounts.length];
        address token = native ? address(gpu) : address(usdc);
        uint256 credit = escrow.credits(token, account);
        uint256 had = MockUSDC(token).balanceOf(account);
        vm.prank(account);
        try escrow.withdraw(token, account) {
            same("received", MockUSDC(token).balanceOf(account) - had, credit);
        } catch {
            same("refused only when empty", credit, 0);
        }
        observe();
    }

    function govern(bool paused, bool allowed, uint16 fee) external {
        vm.prank(owner);
        escrow.setOpensPaused(paused && fee % 3 == 0);
        vm.prank(owner);
        escrow.setToken(address(usdc), allowed || fee % 3 != 0, fee % 501);
        observe();
    }

    function wait(uint32 seconds_) external {
        pass(seconds_ % 2000);
    }

    function waitLong(uint8 dice) external {
        if (dice % 8 == 0) pass(WINDOW);
    }

    // ------------------------------------------------------------------------------------------------------- checks

    function pick(uint256 which) private view returns (bytes32 id, ILeaseEscrow.Lease memory l) {
        if (ids.length == 0) return (0, l);
        id = ids[which % ids.length];
        l = escrow.lease(id);
    }

    function sign(bytes32 id, uint32 seconds_, bool last)
        private
        returns (ILeaseEscrow.Voucher memory v, bytes memory signature)
    {
        if (seconds_ > signedMost[id]) signedMost[id] = seconds_;
        return voucher(id, seconds_, last);
    }

    /// @dev I4: nothing that was paid is taken back, and what is over stays as it is.
    function observe() private {
        for (uint256 i = 0; i < ids.length; ++i) {
            ILeaseEscrow.Lease memory l = escrow.lease(ids[i]);
            ILeaseEscrow.Lease memory was = seen[ids[i]];
            yes("monotone", l.servedSeconds >= was.servedSeconds && l.claimed >= was.claimed && l.feeTaken >= was.feeTaken);
            if (was.closeReason != ILeaseEscrow.CloseReason.Open) {
                yes("over is over", keccak256(abi.encode(l)) == keccak256(abi.encode(was)));
            }
            seen[ids[i]] = l;
        }
    }

    function count() external view returns (uint256) {
        return ids.length;
    }

    function escrowOf() external view returns (LeaseEscrow) {
        return escrow;
    }

    /// @dev I1, I2.
    function checkMoney() external view {
        address[2] memory tokens = [address(usdc), address(gpu)];
        for (uint256 t = 0; t < 2; ++t) {
            uint256 inside = 0;
            ILeaseEscrow.Totals memory sums;
            for (uint256 i = 0; i < ids.length; ++i) {
                ILeaseEscrow.Lease memory l = escrow.lease(ids[i]);
                if (l.token != tokens[t]) continue;
                sums.deposited += l.deposit;
                sums.paid += l.claimed - l.feeTaken;
                sums.fee += l.feeTaken;
                sums.refunded += l.refunded;
                if (l.closeReason == ILeaseEscrow.CloseReason.Open) {
                    inside += l.deposit - l.claimed;
                    same("nothing refunded before the end", l.refunded, 0);
                } else {
                    same("paid + fee + refunded = deposit", uint256(l.claimed) + l.refunded, l.deposit);
                }
            }
            ILeaseEscrow.Totals memory books = escrow.totals(tokens[t]);
            same("deposited", books.deposited, sums.deposited);
            same("paid", books.paid, sums.paid);
            same("fee", books.fee, sums.fee);
            same("refunded", books.refunded, sums.refunded);
            same("held", books.held, inside);

            uint256 credits = 0;
            for (uint256 a = 0; a < accounts.length; ++a) {
                credits += escrow.credits(tokens[t], accounts[a]);
            }
            same("balance = inside + credits", MockUSDC(tokens[t]).balanceOf(address(escrow)), inside + credits);
            checkBooks(tokens[t]);
        }
    }

    /// @dev I3, I11.
    function checkLeases() external view {
        for (uint256 i = 0; i < ids.length; ++i) {
            ILeaseEscrow.Lease memory l = escrow.lease(ids[i]);
            uint256 until = vm.getBlockTimestamp() < l.endsAt ? vm.getBlockTimestamp() : l.endsAt;
            if (l.closingAt != 0 && l.closingAt < until) until = l.closingAt;
            yes("seconds <= signed", l.servedSeconds <= signedMost[ids[i]]);
            yes("seconds <= elapsed", l.servedSeconds <= until - l.openedAt);
            yes("seconds <= term", l.servedSeconds <= l.maxSeconds);
            uint256 price = uint256(l.servedSeconds) * l.pricePerGpuHour * l.gpus / 3600;
            same("claimed", l.claimed, price < l.deposit ? price : l.deposit);
            same("fee", l.feeTaken, uint256(l.claimed) * l.feeBps / 10_000);
            same("fee of the opening", l.feeBps, feeAtOpen[ids[i]]);
            yes("fee <= 5 %", uint256(l.feeTaken) * 20 <= l.claimed);
        }
    }
}

contract InvariantsTest {
    Handler handler;

    function setUp() public {
        handler = new Handler();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    /// @dev Actions alone; set-up and checks are no moves of the game.
    function targetSelectors() public view returns (FuzzSelector[] memory targets) {
        bytes4[] memory s = new bytes4[](13);
        s[0] = Handler.openSome.selector;
        s[1] = Handler.topUpSome.selector;
        s[2] = Handler.settleSome.selector;
        s[3] = Handler.settleForged.selector;
        s[4] = Handler.settleThree.selector;
        s[5] = Handler.closeSome.selector;
        s[6] = Handler.releaseSome.selector;
        s[7] = Handler.requestSome.selector;
        s[8] = Handler.giveUpSome.selector;
        s[9] = Handler.finalizeSome.selector;
        s[10] = Handler.withdrawSome.selector;
        s[11] = Handler.govern.selector;
        s[12] = Handler.wait.selector;
        targets = new FuzzSelector[](2);
        targets[0] = FuzzSelector(address(handler), s);
        bytes4[] memory one = new bytes4[](1);
        one[0] = Handler.waitLong.selector;
        targets[1] = FuzzSelector(address(handler), one);
    }

    function invariant_I1_I2_moneyIsConserved() public view {
        handler.checkMoney();
    }

    function invariant_I3_I11_leasesStayWithinTheirTerms() public view {
        handler.checkLeases();
    }
}
