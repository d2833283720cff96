// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";

/// @dev A party that is a contract: accepts the digests that its owner lets it, and calls what it is told to.
contract Wallet1271 {
    bytes32 public accepted;

    function accept(bytes32 digest) external {
        accepted = digest;
    }

    function isValidSignature(bytes32 digest, bytes calldata) external view returns (bytes4) {
        return digest == accepted ? this.isValidSignature.selector : bytes4(0xffffffff);
    }

    function run(address to, bytes calldata data) external returns (bytes memory) {
        (bool ok, bytes memory answer) = to.call(data);
        if (!ok) {
            assembly {
                revert(add(answer, 32), mload(answer))
            }
        }
        return answer;
    }
}

/// @dev Minted by anyone.
abstract contract Minted is ERC20 {
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }
}

/// @dev As MockUSDC. That itself is not named here, lest it be compiled as tests are and taken for the shipped one.
abstract contract Permitted is Minted, ERC20Permit, ERC3009 {
    constructor() ERC20("Mock USD Coin", "USDC") ERC20Permit("Mock USD Coin") {}
}

/// @dev Keeps a tenth of every transfer, once it is told to.
contract TaxedToken is Minted {
    bool public taxed = true;

    constructor() ERC20("Taxed", "TAX") {}

    function tax(bool on) external {
        taxed = on;
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (taxed && from != address(0) && to != address(0)) super._update(to, address(0xdead), amount / 10);
    }
}

/// @dev Everybody's balance is a share of what there is, which can shrink and grow.
contract RebasingToken is Minted {
    uint256 public percent = 100;

    constructor() ERC20("Rebasing", "REB") {}

    function rebase(uint256 percent_) external {
        percent = percent_;
    }

    function balanceOf(address account) public view override returns (uint256) {
        return super.balanceOf(account) * percent / 100;
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount * 100 / percent);
    }
}

/// @dev Refuses whom it does not like, as real stablecoins do.
contract ListingUSDC is Permitted {
    mapping(address => bool) public listed;

    function list(address account, bool bad) external {
        listed[account] = bad;
    }

    function _update(address from, address to, uint256 amount) internal override {
        require(!listed[from] && !listed[to], "listed");
        super._update(from, to, amount);
    }
}

/// @dev Says no by its answer alone, as old tokens do.
contract FalseToken is Minted {
    constructor() ERC20("False", "FLS") {}

    function transferFrom(address, address, uint256) public pure override returns (bool) {
        return false;
    }
}

/// @dev Answers whatever it is asked, as tokens with a fallback do, and moves nothing.
contract AnsweringToken is Minted {
    constructor() ERC20("Answering", "ANS") {}

    fallback() external {}
}

/// @dev Calls back while it moves, once for each call that it was told.
contract ReenteringToken is Permitted {
    address target;
    bytes[] attacks;
    bytes[] public answers;
    bool[] public done;

    function arm(address target_, bytes[] calldata attacks_) external {
        target = target_;
        for (uint256 i = 0; i < attacks_.length; ++i) {
            attacks.push(attacks_[i]);
        }
    }

    function disarm() external {
        target = address(0);
        delete attacks;
        delete answers;
        delete done;
    }

    function count() external view returns (uint256) {
        return answers.length;
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (target == address(0)) return;
        for (uint256 i = 0; i < attacks.length; ++i) {
            (bool ok, bytes memory answer) = target.call(attacks[i]);
            done.push(ok);
            answers.push(answer);
        }
    }
}
